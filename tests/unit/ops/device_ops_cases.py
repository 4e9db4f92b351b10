"""Run by `test_device_ops.py` in a process of its own, in which Triton interprets kernels."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

import streamadapt as sa
from streamadapt.ops.device import device_operations
from tests import device_ops as laws
from tests.models import residual
from tests.recorded import recorded

assert os.environ.get("TRITON_INTERPRET") == "1"

# NumPy, which interprets, says so where values are not finite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DO = device_operations("triton", device_type="cpu")
# A third of all, of every shape, dtype and order some: interpreting is slow.
CASES = list(laws.matrix())[::3]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_apply_and_collect(case):
    case = dict(case)
    laws.check_apply(DO, laws.SHAPES[case.pop("name")], case.pop("dtype"), **case)


def test_what_is_no_number():
    laws.check_what_is_no_number(DO)


def test_nothing():
    laws.check_nothing(DO)


def test_all_layers():
    laws.check_all_layers(DO)


def test_correction():
    laws.check_correction(DO)


def test_tables():
    laws.check_tables(DO)


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("estimator", ["EMA", "Restarting"])
def test_a_processor_tells_the_same_story(estimator, streams, monkeypatch):
    stories = []
    for kernels in (DO, None):
        monkeypatch.setattr(
            "streamadapt.processor.choose_kernels", lambda *_, found=kernels: (found, None)
        )
        stories.append(
            sa.StreamProcessor(
                residual(),
                estimator=getattr(sa.estimators, estimator)(),
                max_streams=streams,
                class_scores=False,
            )
        )
    with torch.no_grad():
        for step, size in enumerate((1, 3, 4, 1, 4, 3, 4, 4)):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(size, 3, 12, 12, generator=generator) + (20.0 if step > 4 else 1.0)
            if step == 2:
                x[0] *= 5.0
            given = {"pts_seconds": step / 5}
            if streams > 1:
                given["streams"] = [f"camera-{(step + k) % streams}" for k in range(size)]
            outputs = [one(x, **given) for one in stories]
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    assert stories[0].event_counts == stories[1].event_counts


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("estimator", ["EMA", "Restarting"])
def test_a_captured_step_commits_by_kernels_too(estimator, streams, monkeypatch):
    native = device_operations("native", device_type="cpu")
    kernels = dataclasses.replace(native, commits=DO.commits)
    stories = []
    for captured in (True, False):
        monkeypatch.setattr("streamadapt.processor.choose_kernels", lambda *_: (kernels, None))
        one = sa.StreamProcessor(
            residual(),
            estimator=getattr(sa.estimators, estimator)(),
            max_streams=streams,
            class_scores=False,
        )
        if captured:
            one._runtime.captures.record = recorded
            with torch.no_grad():
                one.capture(torch.zeros(4, 3, 12, 12))
        stories.append(one)
    with torch.no_grad():
        for step, size in enumerate((1, 3, 4, 1, 4, 3, 4, 4, 2)):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(size, 3, 12, 12, generator=generator) + (20.0 if step > 4 else 1.0)
            given = {"pts_seconds": step / 5}
            if streams > 1:
                given["streams"] = [f"camera-{(step + k) % streams}" for k in range(size)]
            outputs = [one(x, **given) for one in stories]
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    told = [{k: v for k, v in one.event_counts.items() if k != "StepCaptured"} for one in stories]
    assert told[0] == told[1] and "KernelsUnavailable" not in told[0]


def test_a_captured_step_obeys_another_momentum(monkeypatch):
    native = device_operations("native", device_type="cpu")
    kernels = dataclasses.replace(native, commits=DO.commits)
    monkeypatch.setattr("streamadapt.processor.choose_kernels", lambda *_: (kernels, None))
    stories = [sa.StreamProcessor(residual(), estimator=sa.estimators.EMA(0.5)) for _ in range(2)]
    stories[0]._runtime.captures.record = recorded
    with torch.no_grad():
        stories[0].capture(torch.zeros(4, 3, 12, 12))
        for step in range(6):
            if step == 3:
                for one in stories:
                    one.retune(sa.estimators.EMA(0.05))
            x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(step)) + 1.0
            torch.testing.assert_close(*(one(x) for one in stories), rtol=1e-4, atol=1e-4)
    assert "CapturesDropped" not in stories[0].event_counts
    assert "CaptureMissed" not in stories[0].event_counts
    pair = [one.statistics()["bn1"].mean for one in stories]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)
