"""Scores against their definitions, written out as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamadapt.replay.packing import from_runs, pack_bits, to_runs, unpack_bits
from streamadapt.replay.scores import (
    diversity,
    error_per_domain,
    error_rate,
    expected_calibration_error,
    mean_error,
    quantile,
    reliability,
    rolling_accuracy,
    run_lengths,
)


def test_error_counts_frames_by_domain() -> None:
    correct = [True, False, True, True, False, False]
    errors = error_per_domain(correct, [0, 0, 1, -1, 1, 1], count=3)
    assert errors[:2] == [0.5, pytest.approx(2 / 3)] and math.isnan(errors[2])
    assert mean_error(errors) == pytest.approx((0.5 + 2 / 3) / 2)
    assert error_rate(correct) == 0.5
    assert math.isnan(error_rate([])) and math.isnan(mean_error([math.nan]))


def test_reliability_and_calibration_error_are_guos() -> None:
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.uniform(0.1, 1, 500), [1.0, 1 / 15, 2 / 15]])
    correct = rng.random(503) < confidence**2
    bins = reliability([*confidence, np.nan], [*correct, True])
    error = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        assert bins.frames[i] == inside.sum()
        if inside.any():
            assert bins.confidence[i] == pytest.approx(confidence[inside].mean())
            assert bins.accuracy[i] == pytest.approx(correct[inside].mean())
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            error += inside.sum() / 503 * gap
    assert expected_calibration_error(bins) == pytest.approx(error)
    assert math.isnan(expected_calibration_error(reliability([], [])))


def test_diversity_is_the_effective_number_of_classes() -> None:
    assert diversity(np.eye(7)) == pytest.approx(7)
    assert diversity(np.tile([0.0, 1.0, 0.0], (5, 1))) == 1
    p = np.array([0.5, 0.25, 0.25])
    assert diversity(np.tile(p, (4, 1))) == pytest.approx(2**1.5)


def test_quantiles_and_runs() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert math.isnan(quantile([], 0.5))
    assert run_lengths([]).tolist() == []
    assert run_lengths([1, 1, 2, 2, 2, 1]).tolist() == [2, 3, 1]


def test_rolling_accuracy_stays_inside_a_domain() -> None:
    correct, frames, domains = [4] * 5 + [0] * 5, [4] * 10, [0] * 5 + [1] * 5
    assert rolling_accuracy(correct, frames, domains, window_frames=20) == [1.0] * 5 + [0.0] * 5
    assert rolling_accuracy([0, 2, 4], [4, 4, 4], [0] * 3, window_frames=8) == [0.25, 0.5, 0.75]
    assert rolling_accuracy([0, 2, 4], [4, 4, 4], [0] * 3, window_frames=1) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1001])
def test_what_is_packed_comes_out_again(count: int) -> None:
    bits = np.random.default_rng(count).random(count) < 0.5
    assert unpack_bits(pack_bits(bits), count=count).tolist() == bits.tolist()
    assert from_runs(to_runs(bits.tolist())) == bits.tolist()
    with pytest.raises(ValueError, match="bytes for"):
        unpack_bits(pack_bits(bits), count=count + 9)


def test_what_is_no_base64_is_not_unpacked() -> None:
    with pytest.raises(ValueError, match="not base64"):
        unpack_bits("%%%", count=8)
