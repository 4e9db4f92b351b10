"""Models of other references, collected a slice at a time."""

from __future__ import annotations

import numpy as np
import pytest

from streamadapt.drift.autoregression import AutoRegression, Simulation
from streamadapt.drift.lagged import LaggedMoments, levels


def model(
    phi: list[float], mean: float = 0.3, level: float = 0.0, memory: float = 1.0
) -> AutoRegression:
    return AutoRegression(
        np.float64(mean),
        np.float64(1.5),
        np.array(phi),
        np.float64(0.8),
        np.random.default_rng(0).normal(size=200),
        logarithmic=False,
        effective=200.0,
        level=np.float64(level),
        memory=memory,
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
    own = model(phi)
    moments = LaggedMoments(own.order, own.memory)
    for begin in range(0, 400, longest):
        moments.add(series[begin : begin + longest] - own.mean)
    found = own.refitted_to(moments)
    whole = own.refitted(series)
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
    moments = LaggedMoments(own.order, own.memory)
    for begin in range(0, 2000, 32):
        moments.add(series[begin : begin + 32].astype(np.float32) - np.float32(own.mean))
    found = own.refitted_to(moments)
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


def averages(series: np.ndarray, memory: float) -> np.ndarray:
    """Exponential averages of deviations, before each of them."""
    out, level = np.empty_like(series), np.zeros(series.shape[1])
    for place, value in enumerate(series):
        out[place] = level
        level = level + (value - level) / memory
    return out


@pytest.mark.parametrize("longest", [1, 5, 90, 3000])
def test_a_level_is_a_regressor_like_the_lags(longest: int) -> None:
    """Least squares over the whole series, but for what its ends weigh."""
    own = model([0.3, 0.1], level=0.4, memory=16.0)
    series = own.simulated(4, 3000, np.random.default_rng(4))
    moments = LaggedMoments(own.order, own.memory)
    for begin in range(0, 3000, longest):
        moments.add(series[begin : begin + longest] - own.mean)
    found = own.refitted_to(moments)
    level = averages(series - own.mean, 16.0)
    for one in range(4):
        rows = np.stack(
            [series[1:-1, one], series[:-2, one], level[2:, one], np.ones(2998)], axis=1
        )
        expected, squares, *_ = np.linalg.lstsq(rows, series[2:, one])
        assert found.phi[one] == pytest.approx(expected[:2], abs=0.01)
        assert found.level[one] == pytest.approx(expected[2], abs=0.02)
        assert found.innovation[one] == pytest.approx(np.sqrt(squares[0] / 2998), rel=0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_simulation_wanders_with_its_level(dtype: type[np.floating]) -> None:
    own = model([0.3], level=0.5, memory=16.0)
    simulation = Simulation(own, 3, np.random.default_rng(5), dtype)
    values = np.concatenate(list(simulation.slices(300, longest=7))).astype(np.float64) - 0.3
    left = values[1:] - 0.3 * values[:-1] - 0.5 * averages(values, 16.0)[1:]
    distance = np.abs(left[..., None] - 0.8 * own.residuals).min(axis=-1)
    assert distance.max() < (1e-5 if dtype is np.float32 else 1e-12)


@pytest.mark.parametrize("steps", [1, 3, 64, 200])
@pytest.mark.parametrize("memory", [16.0, np.array([4.0, 16.0, 64.0])])
def test_averages_are_those_of_the_recursion(steps: int, memory: float | np.ndarray) -> None:
    series = np.random.default_rng(6).normal(size=(steps, 3))
    before = np.array([0.5, -1.0, 2.0])
    expected, level = [], before
    for value in series:
        level = level + (value - level) / memory
        expected.append(level)
    np.testing.assert_allclose(levels(series, before, memory), expected, atol=1e-12)


def wandering_under_noise(steps: int, seed: int) -> np.ndarray:
    """A quarter of the variance wanders with a time constant of 100 steps."""
    rng = np.random.default_rng(seed)
    slow = np.empty(steps)
    now, rho = rng.normal(), np.exp(-1 / 100)
    for step in range(steps):
        now = rho * now + np.sqrt(1 - rho**2) * rng.normal()
        slow[step] = now
    return np.sqrt(0.25) * slow + np.sqrt(0.75) * rng.normal(size=steps)


def test_what_wanders_under_noise_is_not_taken_for_independent() -> None:
    """The variance of means is some fifty times that of as many independent values."""
    for seed in range(5):
        found = AutoRegression.fit(wandering_under_noise(20_000, seed))
        assert found.level > 0.3
        assert 20_000 / 120 < found.effective < 20_000 / 20


def test_independent_values_have_no_level() -> None:
    found = [AutoRegression.fit(np.random.default_rng(k).normal(size=4000)) for k in range(10)]
    assert sum(one.level > 0 for one in found) <= 1


def test_a_short_reference_may_be_supposed_to_wander() -> None:
    values = np.random.default_rng(8).normal(size=200)
    plain, careful = (AutoRegression.fit(values, carried=share) for share in (0.0, 0.75))
    assert careful.level == pytest.approx(0.75 * (1.0 - plain.phi.sum()))
    assert careful.effective < plain.effective / 8
    assert careful.residuals.std() == pytest.approx(1.0)
    assert AutoRegression.from_state_dict(careful.state_dict()).gain == careful.gain


@pytest.mark.parametrize(
    "values",
    [
        np.ones(300),
        np.arange(300.0),
        np.tile([1.0, -1.0], 150),
        np.repeat([0.0, 1.0], 150),
        np.eye(1, 300, 150)[0],
        np.sin(np.arange(300.0) / 7.0),
        1e12 + np.arange(300.0),
        np.full(300, 1e-300),
    ],
)
@pytest.mark.parametrize("carried", [0.0, 0.75])
def test_series_that_no_camera_shows_have_a_model_too(values: np.ndarray, carried: float) -> None:
    found = AutoRegression.fit(values, carried=carried)
    for name in ("mean", "deviation", "phi", "innovation", "residuals", "level", "gain"):
        assert np.isfinite(getattr(found, name)).all(), name
    assert 0.0 <= found.effective <= 300.0
    values = found.simulated(4, 500, np.random.default_rng(0))
    assert np.isfinite(values).all()
