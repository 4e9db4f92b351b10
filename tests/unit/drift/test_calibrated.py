"""CUSUM and e-detector against their definitions, and their run times against what was asked."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamadapt.drift import CUSUM, AutoRegression, EDetector, PageHinkley
from streamadapt.errors import ConfigurationError

KINDS = (CUSUM, EDetector)


def wandering(rho: float, steps: int, seed: int, series: int = 1) -> np.ndarray:
    """AR(1) of deviation 1, `[steps, series]`."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(steps, series)) * math.sqrt(1 - rho**2)
    out = np.empty((steps, series))
    out[0] = rng.normal(size=series)
    for step in range(1, steps):
        out[step] = rho * out[step - 1] + noise[step]
    return out


def model(phi: list[float]) -> AutoRegression:
    return AutoRegression(
        np.float64(0.3),
        np.float64(1.5),
        np.array(phi),
        np.float64(0.8),
        np.random.default_rng(0).normal(size=200),
        logarithmic=False,
        effective=200.0,
    )


# The model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_an_ar1_reference_has_the_known_number_of_effective_observations(rho: float) -> None:
    found = AutoRegression.fit(wandering(rho, 40_000, 1)[:, 0])
    expected = 40_000 * (1 - rho) / (1 + rho)
    assert found.effective == pytest.approx(expected, rel=0.1)
    assert found.phi.sum() == pytest.approx(rho, abs=0.02)
    assert found.calibrated
    assert not AutoRegression.fit(wandering(0.9, 1000, 1)[:, 0]).calibrated


def test_a_score_with_a_long_tail_is_taken_in_logarithms() -> None:
    plain = wandering(0.5, 4000, 2)[:, 0]
    assert AutoRegression.fit(np.exp(plain)).logarithmic
    assert not AutoRegression.fit(plain + 10.0).logarithmic
    logarithms = AutoRegression.fit(np.exp(plain), logarithmic=True)
    np.testing.assert_allclose(logarithms.phi, AutoRegression.fit(plain, logarithmic=False).phi)


def test_what_is_simulated_is_like_the_reference() -> None:
    found = AutoRegression.fit(5.0 + 2.0 * wandering(0.8, 20_000, 3)[:, 0], logarithmic=False)
    series = found.simulated(200, 2000, np.random.default_rng(0))
    assert series.mean() == pytest.approx(5.0, abs=0.1)
    assert series.std() == pytest.approx(2.0, rel=0.05)
    lagged = np.corrcoef(series[1:].ravel(), series[:-1].ravel())[0, 1]
    assert lagged == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0] * 5, "16 finite scores"), ([math.nan] * 100, "16 finite"), ([-1.0] * 50, "positive")],
)
def test_a_reference_that_tells_nothing_is_refused(values: list[float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AutoRegression.fit(values, logarithmic=True)


# The tests ----------------------------------------------------------------------------------------


def test_cusum_is_pages() -> None:
    values = wandering(0.5, 300, 4)[:, 0] + np.linspace(0, 2, 300)
    detector = CUSUM(model([0.4]), expected_run_steps=50.0, threshold=4.0)
    up = down = 0.0
    alarms = 0
    for value in values:
        z = (value - 0.3) / 1.5
        up, down = max(0.0, up + z - 0.5), max(0.0, down - z - 0.5)
        expected = max(up, down) > detector.threshold
        detector.update(value)
        assert detector.drift_detected == expected
        if expected:
            up = down = 0.0
            alarms += 1
    assert alarms > 0


@pytest.mark.parametrize("phi", [[0.0], [0.9], [0.5, 0.3, -0.1]])
def test_the_e_detector_sums_likelihood_ratios_over_all_beginnings(phi: list[float]) -> None:
    """Each beginning's ratio from the densities of what the score should be, with and without."""
    own = model(phi)
    detector = EDetector(own, expected_run_steps=1e9, threshold=99.0)
    values = 0.3 + 1.2 * wandering(0.6, 25, 5)[:, 0]

    def predicted(series: np.ndarray, step: int) -> float:
        past = series[max(step - len(phi), 0) : step][::-1]
        return float(sum(p * v for p, v in zip(phi, past, strict=False)))

    for now in range(len(values)):
        deviations = values[: now + 1] - 0.3
        mixture = 0.0
        for size, gradual in product((1, -1, 2, -2), (False, True)):
            weight = (2 if abs(size) == 1 else 1) / 6 * (0.25 if gradual else 0.75)
            total = 0.0
            for begin in range(now + 1):
                log = 0.0
                for step in range(begin, now + 1):
                    shift = np.zeros(now + 1)
                    if gradual:
                        left = 1.0 - sum(phi)
                    else:
                        shift[begin:] = 1.0
                        left = 1.0 - predicted(shift, step)
                    new = (deviations[step] - predicted(deviations, step)) / 0.8
                    new = np.clip(new, -6, 6)
                    mean = np.clip(size * 1.5 / 0.8 * left, -6, 6)
                    log += -0.5 * (new - mean) ** 2 + 0.5 * new**2
                total += math.exp(log)
            mixture += weight * total
        taken = detector._take(own, detector._evidence, values[now : now + 1])
        assert float(taken[0]) == pytest.approx(math.log(mixture), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", (*KINDS, PageHinkley))
def test_series_side_by_side_and_many_steps_at_once_are_what_each_is_alone(
    kind: type[CUSUM | EDetector | PageHinkley],
) -> None:
    """What a threshold is found with against what then watches."""
    own, level = model([0.5, 0.3, -0.1]), 4.0
    detector = kind(own, expected_run_steps=99.0, threshold=level)
    values = 0.3 + wandering(0.7, 200, 9, series=3)
    values[100:] += 1.5
    alone = []
    for series in values.T:
        one = kind(own, expected_run_steps=99.0, threshold=level)
        for value in series:
            one.update(value)
            alone.append(one.drift_detected)
    evidence, alarms = detector._begin(own, 3), []
    for row in values:
        alarms.append(detector._take(own, evidence, row) > level)
        detector._forget(evidence, alarms[-1])
    np.testing.assert_array_equal(np.array(alarms).T.ravel(), alone)
    assert sum(alone) > 3

    single, several = (detector._begin(own, 3) for _ in "ab")
    expected = [detector._take(own, single, row) for row in values]
    found = [detector._sweep(own, several, part) for part in np.split(values, [1, 3, 50])]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("phi", [[0.0], [0.99], [0.5, 0.3, 0.1, -0.1]])
def test_evidence_without_bound_is_finite(phi: list[float]) -> None:
    """In single precision, in which thresholds are found, too."""
    detector = EDetector(model(phi), expected_run_steps=99.0, threshold=4.0)
    for dtype in (np.float32, np.float64):
        evidence = detector._begin(model(phi), 1, dtype)
        for value in (1e3, 0.3, -1e3):
            for steps in (1, 64):
                values = np.full((steps, 1), value, dtype)
                found = detector._sweep(model(phi), evidence, values)
                assert np.isfinite(found).all()
                assert all(np.isfinite(array).all() for array in evidence.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_false_alarms_come_as_often_as_was_asked(kind: type[CUSUM | EDetector], rho: float) -> None:
    steps, asked = 5000, 400.0
    found = []
    for seed in range(4):
        reference = 4000 if rho else 1000
        values = wandering(rho, reference + steps, 10 + seed)[:, 0]
        detector = kind.fit(values[:reference], expected_run_steps=asked, logarithmic=False)
        assert detector.calibrated
        for value in values[reference:]:
            detector.update(value)
            found.append(detector.drift_detected)
    run = len(found) / max(sum(found), 1)
    assert asked / 2.5 < run < asked * 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_rarer_alarm_has_a_higher_threshold_also_where_none_was_simulated(
    kind: type[CUSUM | EDetector],
) -> None:
    own = AutoRegression.fit(wandering(0.5, 2000, 6)[:, 0], logarithmic=False)
    runs = (1e3, 1e5, 1e8)
    levels = [kind(own, expected_run_steps=run).threshold for run in runs]
    assert all(np.diff(levels) > 0)
    if kind is EDetector:  # whose threshold is near the logarithm of the run time
        np.testing.assert_allclose(levels, np.log(runs), atol=1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_is_found_and_warned_of_either_way(kind: type[CUSUM | EDetector]) -> None:
    values = wandering(0.9, 8000, 7)[:, 0]
    detector = kind.fit(values[:5000], expected_run_steps=1e4, logarithmic=False)
    for size in (2.0, -2.0):
        detector.reset()
        seen = []
        for value in values[5000:5500] + size:
            detector.update(value)
            seen.append((detector.drift_detected, detector.warning))
        assert any(alarm for alarm, _ in seen[:300])
        assert not any(alarm and warning for alarm, warning in seen)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6))
def test_it_goes_on_where_its_state_was_taken(kind: type[CUSUM | EDetector], seed: int) -> None:
    values = wandering(0.6, 60, seed)[:, 0] + 1.0
    values[3] = math.nan
    one = kind(model([0.5, 0.1]), expected_run_steps=20.0, threshold=3.0)
    other = kind(model([0.2]), expected_run_steps=500.0, threshold=9.0)
    for value in values[:30]:
        one.update(value)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for value in values[30:]:
        one.update(value)
        other.update(value)
        assert (one.drift_detected, one.warning) == (other.drift_detected, other.warning)
    assert one.state_dict() == other.state_dict()


def test_seconds_without_a_score_change_nothing() -> None:
    one, other = (EDetector(model([0.5]), expected_run_steps=9.0, threshold=4.0) for _ in "ab")
    for value in wandering(0.5, 50, 8)[:, 0]:
        one.update(value)
        other.update(math.nan)
        other.update(value)
        other.update(math.inf)
    assert one.state_dict()["evidence"] == other.state_dict()["evidence"]


@pytest.mark.parametrize("run", [0.0, 1.0, math.inf, math.nan])
def test_a_run_time_that_means_nothing_is_refused(run: float) -> None:
    with pytest.raises(ConfigurationError, match="expected_run_steps"):
        CUSUM(model([0.5]), expected_run_steps=run)


def test_another_kinds_state_is_refused() -> None:
    one = CUSUM(model([0.5]), expected_run_steps=100.0, threshold=5.0)
    with pytest.raises(ConfigurationError, match="EDetector"):
        one.load_state_dict(
            EDetector(model([0.5]), expected_run_steps=9.0, threshold=4.0).state_dict()
        )
