"""The laws of all detectors, and what the classical ones do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import river.drift

from streamadapt.drift import (
    ADWIN,
    CUSUM,
    AutoRegression,
    Detector,
    EDetector,
    EntropyTest,
    PageHinkley,
    River,
)
from streamadapt.errors import ConfigurationError
from streamadapt.testing import check_detector

MODEL = AutoRegression(
    np.float64(0.0), np.float64(1.0), np.zeros(1), np.float64(1.0), np.zeros(1), False, 200.0
)


def calibrated(kind: type[CUSUM | EDetector | PageHinkley], threshold: float) -> Detector:
    return kind(MODEL, expected_run_steps=1000.0, threshold=threshold)


MAKERS: dict[str, Callable[[], Detector]] = {
    "CUSUM": lambda: calibrated(CUSUM, 6.0),
    "EDetector": lambda: calibrated(EDetector, 7.0),
    "PageHinkley": lambda: calibrated(PageHinkley, 12.0),
    "ADWIN": ADWIN,
    "EntropyTest": lambda: EntropyTest(np.linspace(-2, 2, 100), expected_run_steps=500.0),
    "River(ADWIN)": lambda: River(river.drift.ADWIN()),
    "River(PageHinkley)": lambda: River(river.drift.PageHinkley()),
    "River(KSWIN)": lambda: River(river.drift.KSWIN(seed=1)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_detector_keeps_the_laws(name: str) -> None:
    check_detector(MAKERS[name])


class Deaf(ADWIN):
    def update(self, value: float) -> None:
        pass


class Startled(ADWIN):
    def update(self, value: float) -> None:
        super().update(value)
        self.drift_detected = not math.isfinite(value)


class Forgetful(ADWIN):
    def load_state_dict(self, state: dict) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Deaf, "large shift"), (Startled, "not finite"), (Forgetful, "state was taken|no state")],
)
def test_what_breaks_a_law_is_named(kind: type[Detector], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_detector(kind)


# Page-Hinkley -------------------------------------------------------------------------------------


def test_page_hinkley_is_the_cumulative_sum_above_its_least() -> None:
    values = np.random.default_rng(0).normal(size=200) + np.linspace(0, 3, 200)
    detector = calibrated(PageHinkley, 1e9)
    for now in range(1, 200):
        means = np.cumsum(values[:now]) / np.arange(1, now + 1)
        sums = np.concatenate([[0.0], np.cumsum(values[:now] - means - 0.5)])
        down = np.concatenate([[0.0], np.cumsum(means - values[:now] - 0.5)])
        expected = max(sums[-1] - sums.min(), down[-1] - down.min())
        found = detector._take(MODEL, detector._evidence, values[now - 1 : now])
        assert float(found[0]) == pytest.approx(expected, abs=1e-9)


# The betting test --------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [100, 1000])
def test_the_betting_test_keeps_its_run_time_whatever_the_source_is_like(frames: int) -> None:
    rng = np.random.default_rng(frames)
    draws = (lambda n: rng.gamma(0.3, 1.0, n), lambda n: rng.integers(0, 4, n) / 3.0)
    alarms = steps = 0
    for seed in range(3):
        for draw in draws:
            detector = EntropyTest(draw(frames), expected_run_steps=500.0, seed=seed)
            for value in draw(2500):
                detector.update(value)
                alarms += detector.drift_detected
                steps += 1
    assert steps / max(alarms, 1) > 350  # 500 and more, give or take chance


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_the_betting_test_finds_outputs_that_are_surer_or_less_sure(factor: float) -> None:
    rng = np.random.default_rng(5)
    detector = EntropyTest(rng.gamma(1.0, 1.0, 500), expected_run_steps=10_000.0)
    alarms = []
    for value in factor * rng.gamma(1.0, 1.0, 100):
        detector.update(value)
        alarms.append(detector.drift_detected)
    assert any(alarms)


@pytest.mark.parametrize(
    ("source", "run", "message"), [([0.1] * 5, 100.0, "20 finite"), ([0.1] * 30, 1.0, "above 1")]
)
def test_a_betting_test_without_a_base_is_refused(
    source: list[float], run: float, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EntropyTest(source, expected_run_steps=run)


# ADWIN --------------------------------------------------------------------------------------------


def test_adwins_window_is_the_last_values() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 1, 700), rng.normal(3, 2, 500)])
    detector, widths = ADWIN(), []
    for now, value in enumerate(values, start=1):
        detector.update(value)
        window = values[now - detector.width : now]
        assert detector.mean == pytest.approx(window.mean(), abs=1e-9)
        whole = detector._whole()
        assert whole.squares == pytest.approx(((window - window.mean()) ** 2).sum(), rel=1e-9)
        widths.append(detector.width)
    assert widths[699] == 700  # nothing happened
    assert widths[-1] <= 520  # what was before the change is gone
    assert sum(len(row) for row in detector._rows) <= 5 * len(detector._rows)


def test_adwin_finds_what_rivers_finds_as_soon() -> None:
    rng = np.random.default_rng(2)
    for shift in (0.5, 1.0, 3.0):
        values = np.concatenate([rng.normal(0, 1, 1000), rng.normal(shift, 1, 1000)])
        firsts = []
        for detector in (ADWIN(), River(river.drift.ADWIN())):
            alarms = []
            for step, value in enumerate(values):
                detector.update(value)
                if detector.drift_detected:
                    alarms.append(step)
            firsts.append(alarms[0])
        assert firsts[0] == firsts[1]


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_adwins_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(ConfigurationError, match="delta"):
        ADWIN(delta=delta)


def test_what_is_no_detector_of_rivers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="clone"):
        River(ADWIN())
