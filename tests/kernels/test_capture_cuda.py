"""Captured steps on a GPU: the same answers, no waiting, and obedience without another capture."""

from __future__ import annotations

import pytest
import torch

import streamadapt as sa
from tests.models import frames, residual

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def on_device(**options):
    return sa.StreamProcessor(residual().to("cuda"), class_scores=False, **options)


def batches(count, *, shift_from, streams=1):
    for step in range(count):
        size = (1, 3, 6, 4)[step % 4]
        given = {"pts_seconds": step / 5}
        if streams > 1:
            given["streams"] = [f"camera-{(step + k) % streams}" for k in range(size)]
        yield frames(size, seed=step, shift=20.0 if step >= shift_from else 1.0).to("cuda"), given


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
@pytest.mark.parametrize("estimator", ["EMA", "Welford", "Restarting"])
def test_a_stream_is_followed_as_without(estimator, timing, streams):
    options = {"timing": timing, "max_streams": streams}
    make = getattr(sa.estimators, estimator)
    plain, replayed = (on_device(estimator=make(), **options) for _ in range(2))
    for size in (2, 6):
        replayed.capture(torch.zeros(size, 3, 8, 8, device="cuda"))
    for x, given in batches(48, shift_from=24, streams=streams):
        # A settling pass is due as soon as the host knows: for both in the same step.
        torch.testing.assert_close(replayed(x, **given), plain(x, **given), **TOLERANCE)
        for one in (plain, replayed):
            one.flush()
    assert "CaptureMissed" not in replayed.event_counts
    for stream in plain._runtime.streams.streams:
        pair = (one.statistics(stream) for one in (replayed, plain))
        for mine, other in zip(*(found.values() for found in pair), strict=True):
            torch.testing.assert_close(mine.mean, other.mean, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(mine.var, other.var, rtol=1e-3, atol=1e-3)


def test_rollback_and_freezing_hold_and_are_quick():
    made = on_device(estimator=sa.estimators.EMA(0.5))
    made.capture(torch.zeros(4, 3, 8, 8, device="cuda"))
    x = frames(4, seed=1, shift=5.0).to("cuda")
    before = made(x)
    made.snapshot("first")
    for seed in range(5):
        made(frames(4, seed=seed, shift=9.0).to("cuda"))
    assert not torch.allclose(made(x), before)
    made.freeze()
    made.rollback("source")
    torch.testing.assert_close(made(x), before, **TOLERANCE)
    torch.testing.assert_close(made(x), before, **TOLERANCE)
    made.resume()
    milliseconds = []
    for _ in range(20):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda.synchronize()
        marks[0].record()
        made.rollback("first")
        marks[1].record()
        torch.cuda.synchronize()
        milliseconds.append(marks[0].elapsed_time(marks[1]))
    assert sorted(milliseconds)[len(milliseconds) // 2] < 1.0


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("streams", [1, 3])
def test_no_steady_step_waits_for_the_device(captured, streams):
    made = on_device(max_streams=streams)
    if captured:
        made.capture(torch.zeros(6, 3, 8, 8, device="cuda"))
    given = list(batches(80, shift_from=80, streams=streams))
    for x, options in given[:60]:
        made(x, **options)
    made.flush()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, options in given[60:]:
            made(x, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    made.flush()
    assert "UpdateFailed" not in made.event_counts


def test_a_replay_is_the_same_to_the_bit():
    found = []
    for _ in range(2):
        made = on_device()
        made.capture(torch.zeros(6, 3, 8, 8, device="cuda"))
        outputs = []
        for x, given in batches(30, shift_from=15):
            outputs.append(made(x, **given))
            made.flush()
        found.append(outputs)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
