"""Models of other references, collected a slice at a time."""

from __future__ import annotations

import numpy as np
import pytest

from streamadapt.drift.autoregression import AutoRegression, LaggedMoments, Simulation


def model(phi: list[float], mean: float = 0.3) -> AutoRegression:
    return AutoRegression(
        np.float64(mean),
        np.float64(1.5),
        np.array(phi),
        np.float64(0.8),
        np.random.default_rng(0).normal(size=200),
        logarithmic=False,
        effective=200.0,
    )


def yule_walker(series: np.ndarray, order: int) -> tuple[float, float, np.ndarray, float]:
    mean, steps = series.mean(), len(series)
    centred = series - mean
    gamma = [(centred[lag:] * centred[: steps - lag]).sum() / steps for lag in range(order + 1)]
    matrix = np.array([[gamma[abs(i - j)] for j in range(order)] for i in range(order)])
    phi = np.linalg.solve(matrix, gamma[1:])
    return mean, np.sqrt(gamma[0]), phi, np.sqrt(gamma[0] - phi @ gamma[1:])


@pytest.mark.parametrize("phi", [[0.9], [0.5, 0.3, -0.1]])
@pytest.mark.parametrize("longest", [1, 2, 7, 400])
def test_models_collected_in_slices_are_yule_walkers(phi: list[float], longest: int) -> None:
    series = np.random.default_rng(1).normal(size=(400, 5)).cumsum(axis=0)
    moments = LaggedMoments(model(phi))
    for begin in range(0, 400, longest):
        moments.add(series[begin : begin + longest])
    found = moments.fitted()
    whole = model(phi).refitted(series)
    for one in range(5):
        expected = yule_walker(series[:, one], len(phi))
        for each in (found, whole):
            got = each.mean[one], each.deviation[one], each.phi[one], each.innovation[one]
            for value, wanted in zip(got, expected, strict=True):
                np.testing.assert_allclose(value, wanted, rtol=1e-8)


def test_scores_far_from_nought_lose_nothing_in_single_precision() -> None:
    """Sums of squares of such values would cancel."""
    own = model([0.9], mean=1000.0)
    series = own.simulated(3, 2000, np.random.default_rng(2))
    moments = LaggedMoments(own)
    for begin in range(0, 2000, 32):
        moments.add(series[begin : begin + 32].astype(np.float32))
    found = moments.fitted()
    for one in range(3):
        expected = yule_walker(series[:, one], 1)
        assert found.phi[one, 0] == pytest.approx(expected[2][0], abs=1e-3)
        assert found.innovation[one] == pytest.approx(expected[3], rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_simulation_goes_on_from_slice_to_slice(dtype: type[np.floating]) -> None:
    """What is left of each value by the model's equation is one of its residuals."""
    own = model([0.5, 0.3, -0.1])
    simulation = Simulation(own, 4, np.random.default_rng(3), dtype)
    slices = list(simulation.slices(100, longest=7))
    assert [len(one) for one in slices] == [7] * 14 + [2]
    values = np.concatenate(slices)
    assert values.dtype == dtype
    deviations = values.astype(np.float64) - 0.3
    left = deviations[3:].copy()
    for lag in (1, 2, 3):
        left -= own.phi[lag - 1] * deviations[3 - lag : -lag]
    distance = np.abs(left[..., None] - 0.8 * own.residuals).min(axis=-1)
    assert distance.max() < (1e-5 if dtype is np.float32 else 1e-12)
