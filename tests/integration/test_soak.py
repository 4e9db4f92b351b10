"""Nothing grows with the stream: neither resident memory nor Python objects.

The full run, 100,000 steps with a bound on the pace as well, is `python -m benchmarks.soak`.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import streamadapt as sa
from benchmarks.soak import soak, tiny_model

pytestmark = pytest.mark.slow

STEPS = 2000
OPTIONS = {
    "one stream": {},
    "synchronous": {"timing": "synchronous"},
    "shadow": {"mode": "shadow"},
    "welford": {"estimator": sa.estimators.Welford()},
    "streams that come and go": {"max_streams": 2, "when_full": "evict"},
}


WINDOW = 150
SMALLEST = 24  # bytes of the smallest object there is, a float


def least_growth(step: Callable[[int], object]) -> int:
    """Bytes of Python objects that the best of eight stretches of `WINDOW` steps left behind.

    What leaks grows in every stretch. Blocks that are kept for reuse also count as growth, but
    less and less of them.
    """
    sizes = []
    tracemalloc.start()
    try:
        for index in range(9 * WINDOW):
            step(index)
            if index % WINDOW == WINDOW - 1:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return min(later - earlier for earlier, later in pairwise(sizes))


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")
@pytest.mark.parametrize("streams", [1, 4])
def test_resident_memory_does_not_grow(streams: int) -> None:
    # Detectors that are still learning: finding a threshold takes some megabytes, once.
    run = soak(STEPS, streams=streams, alarms=sa.drift.Alarms(rate_hz=0.01))
    # 60 bytes a step: less than any tensor or event that is kept.
    assert run.growth_bytes < 60 * STEPS
    assert run.events["StepCompleted"] == STEPS


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_steps_leave_no_objects_behind(frames: torch.Tensor, options: dict[str, object]) -> None:
    many = "max_streams" in options
    with sa.StreamProcessor(tiny_model(), **options) as processor, torch.inference_mode():
        growth = least_growth(
            # Six cameras take turns on two rows, under names made anew.
            lambda index: processor(frames, streams=f"camera-{index // 3 % 6}" if many else None)
        )
    assert growth < SMALLEST * WINDOW


def test_snapshots_and_rollbacks_leave_no_objects_behind(frames: torch.Tensor) -> None:
    with sa.StreamProcessor(tiny_model(), max_snapshots=4) as processor, torch.inference_mode():

        def step(index: int) -> None:
            processor(frames)
            processor.snapshot()
            processor.rollback()

        assert least_growth(step) < SMALLEST * WINDOW
