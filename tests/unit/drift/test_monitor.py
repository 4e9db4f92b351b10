"""One promise for all scores of a camera, and a fleet's alarm."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from streamadapt.drift import CUSUM, FleetAlarm, ScoreMonitor
from streamadapt.errors import ConfigurationError


def scores(seconds: int, seed: int, *, rho: float = 0.5) -> np.ndarray:
    """Three correlated scores, one value a second."""
    rng = np.random.default_rng(seed)
    out = rng.normal(size=(seconds, 3)) * math.sqrt(1 - rho**2)
    for step in range(1, seconds):
        out[step] += rho * out[step - 1]
    return np.exp(0.3 * out)


def shown(monitor: ScoreMonitor, values: np.ndarray, *, start: float = 0.0) -> list[str]:
    alarms: list[str] = []
    for second, row in enumerate(values):
        alarms += monitor.observe(start + second, dict(zip("abc", row.tolist(), strict=True)))
    return alarms


def test_false_alarms_of_all_scores_together_come_as_often_as_was_promised() -> None:
    alarms, watched = 0, 0
    for seed in range(3):
        monitor = ScoreMonitor("abc", expected_run_seconds=300.0)
        values = scores(5000, seed)
        shown(monitor, values[:500])
        assert monitor.calibrated
        alarms += len(shown(monitor, values[500:], start=500.0))
        watched += 4500
    assert 120.0 < watched / alarms < 750.0


def test_a_shift_of_one_score_is_that_scores_alarm() -> None:
    monitor = ScoreMonitor("abc", expected_run_seconds=1e5, detector=CUSUM)
    values = scores(900, 5)
    values[700:, 1] *= 3.0
    assert set(shown(monitor, values)) == {"b"}


def test_frames_of_a_second_are_one_value() -> None:
    one, other = (ScoreMonitor(["x"], detector=CUSUM) for _ in "ab")
    rng = np.random.default_rng(0)
    for second in range(100):
        frames = rng.normal(size=25)
        one.observe(second, {"x": float(frames.mean())})
        for k, frame in enumerate(frames):
            other.observe(second + k / 25, {"x": float(frame)})
    assert other.state_dict()["x"]["reference"] == pytest.approx(one.state_dict()["x"]["reference"])


def test_until_the_reference_is_long_enough_nothing_is_promised_and_nothing_alarms() -> None:
    monitor = ScoreMonitor("abc", expected_run_seconds=1e6)
    values = scores(1200, 1, rho=0.97)  # worth one in sixty-six
    assert not shown(monitor, values)
    assert not monitor.calibrated


def test_a_promise_takes_a_two_hundredth_of_its_time() -> None:
    monitor = ScoreMonitor(["a"], expected_run_seconds=2e5, detector=CUSUM)
    values = np.random.default_rng(0).normal(size=1400).tolist()
    for second, value in enumerate(values):
        monitor.observe(second, {"a": value})
        if second == 950:
            assert not monitor.calibrated  # though its values are independent
    assert monitor.calibrated


def test_a_stand_in_sees_what_is_large_and_lets_slow_wandering_be() -> None:
    """Scenes of some minutes, under noise: two minutes do not show how the hour goes."""
    rng = np.random.default_rng(1)
    alarms = found = 0
    for _ in range(12):
        monitor = ScoreMonitor(["a"])
        scene = 0.0
        for second in range(1500):
            if rng.random() < 1 / 150:
                scene = 0.4 * rng.normal()
            assert not monitor.calibrated
            alarms += len(monitor.observe(second, {"a": scene + rng.normal()}))
        jump = [
            monitor.observe(second, {"a": scene + 5.0 + rng.normal()})
            for second in range(1500, 1560)
        ]
        found += any(jump)
    assert alarms <= 1
    assert found >= 11


def test_a_known_new_world_is_learned_anew() -> None:
    monitor = ScoreMonitor("abc", expected_run_seconds=5e4, detector=CUSUM)
    shown(monitor, scores(600, 2))
    assert monitor.calibrated
    monitor.rereference()
    assert not monitor.calibrated
    assert not shown(monitor, 50.0 + scores(1200, 3), start=600.0)
    assert monitor.calibrated


def test_thresholds_are_found_beside_the_stream() -> None:
    with ThreadPoolExecutor(1) as executor:
        monitor = ScoreMonitor(["x"], expected_run_seconds=1e4, detector=CUSUM, executor=executor)
        rng = np.random.default_rng(0)
        for second in range(140):
            monitor.observe(second, {"x": float(rng.normal())})
        executor.submit(int).result()  # what was submitted before it is done
        monitor.observe(141.0, {"x": 0.0})
        monitor.observe(142.0, {"x": 0.0})
        assert monitor.calibrated


@pytest.mark.parametrize("cut", [60, 700])
def test_it_goes_on_where_its_state_was_taken(cut: int) -> None:
    values = scores(1200, 4)
    values[1000:] *= 2.0
    one, other = (ScoreMonitor("abc", expected_run_seconds=500.0, detector=CUSUM) for _ in "ab")
    shown(one, values[:cut])
    one.observe(cut, {})  # closes the last second
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    alarms = [shown(each, values[cut:], start=cut + 1.0) for each in (one, other)]
    assert alarms[0] == alarms[1] and alarms[0]


def test_a_state_with_the_longest_reference_can_be_taken_up() -> None:
    monitor = ScoreMonitor(["x"], detector=CUSUM)
    monitor.load_state_dict({"x": {"detector": None, "reference": [0.0, 1.0] * 20_000}})
    assert len(monitor.state_dict()["x"]["reference"]) == 40_000


def test_what_is_missing_is_left_out() -> None:
    monitor = ScoreMonitor("abc")
    for second in range(10):
        monitor.observe(second, {"a": math.nan, "b": float(second)})
    assert monitor.state_dict()["a"]["reference"] == []
    assert monitor.state_dict()["b"]["reference"] == list(range(9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": []}, "scores"),
        ({"scores": ["a", "a"]}, "scores"),
        ({"scores": ["a"], "rate_hz": 0.0}, "rate_hz"),
        ({"scores": ["a"], "expected_run_seconds": math.inf}, "expected_run_seconds"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ScoreMonitor(arguments.pop("scores"), **arguments)


def test_unknown_scores_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'x'"):
        ScoreMonitor("ab").observe(0.0, {"x": 1.0})
    with pytest.raises(ConfigurationError, match="scores"):
        ScoreMonitor("ab").load_state_dict({"x": {}})


def test_a_fleet_alarms_when_enough_cameras_do_at_once() -> None:
    fleet = FleetAlarm(cameras=3, window_seconds=60.0)
    assert fleet.observe(0.0, "a") == ()
    assert fleet.observe(1.0, "a") == ()
    assert fleet.observe(2.0, "b") == ()
    assert fleet.observe(61.5, "c") == ()  # the first's are over
    assert fleet.observe(61.8, "d") == ("b", "c", "d")
    assert fleet.observe(61.9, "a") == ()
    with pytest.raises(ConfigurationError, match="cameras"):
        FleetAlarm(cameras=0, window_seconds=1.0)
