"""Models run in other threads while one is traced."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.taps.tracing import OneThreadTracer
from tests.models import frames, residual


class Waiting(nn.Module):
    """Is being traced until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.inside = [threading.Event(), threading.Event()]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.inside[0].set()
        assert self.inside[1].wait(60)
        return self.norm(x)


def test_what_other_threads_run_is_not_traced() -> None:
    model, other = Waiting().eval(), residual()
    graphs = []
    thread = threading.Thread(target=lambda: graphs.append(OneThreadTracer().trace(model)))
    thread.start()
    with torch.no_grad():
        wanted = None
        assert model.inside[0].wait(60)
        wanted = other(frames(2))  # while the trace is under way
        assert isinstance(wanted, Tensor)
        with pytest.raises(AttributeError):
            other.nothing  # noqa: B018
        model.inside[1].set()
        thread.join()
        torch.testing.assert_close(other(frames(2)), wanted)
    called = [node.target for node in graphs[0].nodes if node.op == "call_module"]
    assert called == ["conv", "norm"]


def test_traces_at_once_leave_nothing_behind() -> None:
    call = nn.Module.__call__
    threads = [threading.Thread(target=lambda: sa.fold(residual())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Module.__call__ is call
