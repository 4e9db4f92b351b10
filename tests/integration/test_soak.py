"""Nothing grows with the stream: neither resident memory nor Python objects.

The full run, 100,000 steps with a bound on the pace as well, is `python -m benchmarks.soak`.
"""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest
import torch

import streamadapt as sa
from benchmarks.soak import soak, tiny_model

pytestmark = pytest.mark.slow

STEPS = 6000
OPTIONS = {
    "one stream": {},
    "synchronous": {"timing": "synchronous"},
    "shadow": {"mode": "shadow"},
    "welford": {"estimator": sa.estimators.Welford()},
    "streams that come and go": {"max_streams": 2, "when_full": "evict"},
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")
@pytest.mark.parametrize("streams", [1, 4])
def test_resident_memory_does_not_grow(streams: int) -> None:
    run = soak(STEPS, streams=streams)
    # 54 bytes a step: less than any tensor or event that is kept.
    assert run.growth_bytes < 0.9 * STEPS * 60
    assert run.events["StepCompleted"] == STEPS


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_objects_are_left_behind_by_steps(options: dict[str, object]) -> None:
    frames = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    many = int(options.get("max_streams", 1)) > 1
    with sa.StreamProcessor(tiny_model(), **options) as processor, torch.inference_mode():

        def run(first: int, steps: int) -> None:
            for step in range(first, first + steps):
                # Six cameras take turns on two rows, with names made anew.
                processor(frames, streams=f"camera-{step // 3 % 6}" if many else None)

        run(0, 300)
        tracemalloc.start()
        try:
            run(300, 100)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            run(400, 1000)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # One reference a step would be 8,000 bytes, one object far more.
    assert after - before < 6000


def test_snapshots_and_rollbacks_leave_nothing_behind() -> None:
    frames = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with sa.StreamProcessor(tiny_model(), max_snapshots=4) as processor, torch.inference_mode():

        def run(rounds: int) -> None:
            for _ in range(rounds):
                processor(frames)
                processor.snapshot()
                processor.rollback()

        run(50)
        tracemalloc.start()
        try:
            run(50)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            run(500)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 4000
