"""How fast an estimate forgets: per batch, per frame, or per second of camera time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from streamadapt import StreamProcessor
from streamadapt.estimators import EMA, Observation
from streamadapt.estimators.memory import MAX_SECONDS_PER_FRAME, Memory
from streamadapt.moments import Moments

HALF_LIFE_SECONDS = 8.0


def observed(frames: float, seconds: float = 0.0) -> Observation:
    one = torch.ones(1, 1, dtype=torch.float64)
    return Observation(Moments(one, one, one), one * frames, one * seconds)


def weight(memory: Memory, frames: float, seconds: float = 0.0) -> float:
    return memory.weight(observed(frames, seconds)).item()


@given(st.floats(0.01, 1.0), st.integers(1, 64))
def test_momentum_is_the_weight_of_every_batch(momentum: float, frames: int) -> None:
    assert weight(Memory(momentum=momentum), frames, seconds=5.0) == momentum


@given(st.floats(1.0, 1e6), st.integers(1, 64))
def test_a_batch_of_n_fades_the_past_like_n_batches_of_one(half_life: float, n: int) -> None:
    memory = Memory(half_life_frames=half_life)
    kept_singly = (1.0 - weight(memory, 1)) ** n
    assert 1.0 - weight(memory, n) == pytest.approx(kept_singly, rel=1e-12)


@given(st.floats(0.5, 1e6))
def test_after_a_half_life_an_old_frame_counts_half(half_life: float) -> None:
    assert weight(Memory(half_life_frames=half_life), half_life) == pytest.approx(0.5, rel=1e-12)
    by_time = Memory(half_life_seconds=half_life)
    assert weight(by_time, 2e6, seconds=half_life) == pytest.approx(0.5, rel=1e-12)


def test_the_default_is_what_its_documentation_says() -> None:
    assert weight(EMA().memory, 16) == pytest.approx(0.03, abs=0.001)
    assert weight(EMA().memory, 64) == pytest.approx(0.12, abs=0.005)


def test_a_weight_so_small_that_subtraction_from_one_would_lose_it() -> None:
    assert weight(Memory(half_life_frames=1e18), 1) == pytest.approx(6.931471805599453e-19)


def test_only_camera_time_asks_for_time() -> None:
    assert EMA(half_life_seconds=2.0).uses_time
    assert not EMA(half_life_frames=2.0).uses_time
    assert not EMA(0.1).uses_time


@pytest.mark.parametrize("frames", [1, 4])
def test_a_camera_that_was_away_brings_its_frames_and_not_the_gap(frames: int) -> None:
    memory = Memory(half_life_seconds=10.0)
    longest = frames * MAX_SECONDS_PER_FRAME
    assert weight(memory, frames, seconds=3600.0) == weight(memory, frames, seconds=longest)
    assert weight(memory, frames, seconds=3600.0) == pytest.approx(1 - 2 ** (-longest / 10.0))
    assert weight(memory, frames, seconds=0.5 * longest) < weight(memory, frames, seconds=longest)


def remaining(estimator: EMA, stamps: list[list[float]]) -> float:
    """The source's share in the mean after a stream of frames that are all 4, from a mean of 0."""
    model = nn.BatchNorm2d(1).eval()
    with StreamProcessor(model, estimator=estimator) as processor:
        for batch in stamps:
            processor(torch.full((len(batch), 1, 2, 2), 4.0), pts_seconds=batch)
        return 1.0 - model.running_mean.item() / 4.0


def film(*, frames_per_second: float, batch: int, seconds: float) -> list[list[float]]:
    """Time stamps of a stream cut into batches."""
    stamps = [index / frames_per_second for index in range(round(seconds * frames_per_second))]
    return [stamps[start : start + batch] for start in range(0, len(stamps), batch)]


def test_camera_seconds_mean_the_same_at_any_frame_rate_and_batch_size() -> None:
    """25 frames a second one by one, and 5 a second in batches of 16."""
    fast = film(frames_per_second=25.0, batch=1, seconds=16.0)
    slow = film(frames_per_second=5.0, batch=16, seconds=16.0)
    assert (len(fast), len(slow)) == (400, 5)
    shares = [remaining(EMA(half_life_seconds=HALF_LIFE_SECONDS), one) for one in (fast, slow)]
    assert shares[0] == pytest.approx(shares[1], rel=0.01)
    assert shares == pytest.approx([0.25, 0.25], rel=0.01)  # two half-lives


def test_frames_mean_the_same_in_any_batch_size() -> None:
    singly, together = ([[0.0] * size for _ in range(count)] for size, count in ((1, 48), (16, 3)))
    shares = [remaining(EMA(half_life_frames=24.0), one) for one in (singly, together)]
    assert shares == pytest.approx([0.25, 0.25], rel=1e-5)


def test_an_outage_of_an_hour_is_one_second_of_evidence() -> None:
    estimator = EMA(half_life_seconds=HALF_LIFE_SECONDS)
    kept = remaining(estimator, [[0.0], [1.0]])
    assert remaining(estimator, [[0.0], [3600.0]]) == kept
    assert kept == pytest.approx(2 ** (-1.0 / HALF_LIFE_SECONDS), rel=1e-5)
