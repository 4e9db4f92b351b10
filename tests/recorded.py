"""A stand-in for CUDA graphs on the CPU: operations are recorded, and done again in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class HostAsked(RuntimeError):
    """Something that a device would be waited for, or that lies in the host's memory."""


_OF_THE_HOST = {
    "aten::_local_scalar_dense": "a value was read by the host",
    "aten::is_nonzero": "a value was read by the host",
    "aten::nonzero": "a shape depends on values",
    "aten::equal": "a value was read by the host",
    "aten::lift_fresh": "a constant was made of the host's memory",
}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reason = _OF_THE_HOST.get(func.name().split(".")[0])
        if reason is not None:
            raise HostAsked(f"{reason} ({func.name()})")
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output


def recorded(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Like `streamadapt.capturing.cuda_graph`.

    Whatever Python decided while recording is decided for good, and tensors stay where they were:
    a replay sees new values only where they were written to the memory that it reads.
    """
    recorder = _Recorder()
    with recorder:
        result = run()

    def replay() -> None:
        with torch.no_grad():
            for func, args, kwargs, output in recorder.calls:
                known = {_memory(one) for one in _tensors((args, kwargs))}
                again = func(*args, **kwargs)
                pairs = zip(_tensors(output), _tensors(again), strict=True)
                for old, new in pairs:
                    if _memory(old) not in known:
                        old.copy_(new)

    return result, replay


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in pytree.tree_leaves(tree) if isinstance(one, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
