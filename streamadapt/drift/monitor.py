"""All scores of one camera under one promise, and the alarms of many cameras as one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from streamadapt.drift.autoregression import AutoRegression
from streamadapt.drift.calibrated import CalibratedDetector
from streamadapt.drift.e_detector import EDetector
from streamadapt.errors import ConfigurationError

MONTH_SECONDS = 30 * 86_400.0
_FIRST_LOOK = 128  # values of a reference before it is asked whether it is long enough
_STAND_IN = 25.0  # independent values that a first detector needs
_LONGEST_REFERENCE = 40_000  # values; a score that still wanders then is watched uncalibrated
_LEAST_SHARE = 1 / 200  # of the run time that a promise is made from
_CARRIED = 0.75  # of a deviation, by what may wander unseen in a reference that is too short

MakeDetector = Callable[..., CalibratedDetector]


class ScoreMonitor:
    """Watches the scores of one camera and keeps one promise for all of them together.

    Scores come at whatever rate frames do; their means over `1 / rate_hz` seconds are what is
    watched, so that the promise is one in time. Each score collects a reference, until that is
    worth a hundred independent values and a two-hundredth of the run time long, and is then watched
    by a detector of its own with its share of the false alarms. From the worth of twenty-five on,
    and 128 values, a detector of the reference so far stands in, and another one whenever that is
    twice as long. Nothing is promised of it. What wanders slowly does not show in a short
    reference, so it supposes that much does: it is for changes that are large or abrupt.

    Args:
        scores: their names.
        expected_run_seconds: mean time between false alarms of the camera, all scores together.
        rate_hz: values a second that detectors see.
        detector: what makes one of a model, `expected_run_steps=`, and `seed=` or `threshold=`.
        executor: where thresholds are found, a simulation a score; None: within `observe`.

    Raises:
        ConfigurationError: no scores, or a time or rate that is not positive.
    """

    def __init__(
        self,
        scores: Sequence[str],
        *,
        expected_run_seconds: float = MONTH_SECONDS,
        rate_hz: float = 1.0,
        detector: MakeDetector = EDetector,
        executor: Executor | None = None,
    ) -> None:
        for name, value in (("expected_run_seconds", expected_run_seconds), ("rate_hz", rate_hz)):
            if not (value > 0.0 and math.isfinite(value)):
                raise ConfigurationError(f"`{name}` must be positive and finite, got {value}.")
        if not scores or len(set(scores)) != len(scores):
            raise ConfigurationError(f"`scores` must be different names, got {list(scores)}.")
        self.expected_run_seconds = float(expected_run_seconds)
        self.rate_hz = float(rate_hz)
        run = self.expected_run_seconds * self.rate_hz
        self._watches = {
            name: _Watch(
                detector,
                steps=run * len(scores),
                least=min(run * _LEAST_SHARE, _LONGEST_REFERENCE),
                seed=seed,
                executor=executor,
            )
            for seed, name in enumerate(scores)
        }
        self._bin: int | None = None
        self._sums: dict[str, tuple[float, int]] = {}

    @property
    def calibrated(self) -> bool:
        """Whether every score has a reference that the promise can be made from."""
        return all(watch.calibrated for watch in self._watches.values())

    def calibrated_for(self, score: str) -> bool:
        """Whether an alarm of a score, now, is one that the promise covers."""
        return self._watches[score].calibrated

    def deviation(self, score: str, value: float) -> float:
        """How many standard deviations of its reference a value lies above the usual one.

        NaN while there is no reference.
        """
        return self._watches[score].deviation(value)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Scores with evidence on its way to an alarm."""
        return tuple(name for name, watch in self._watches.items() if watch.warning)

    def observe(self, seconds: float, values: Mapping[str, float]) -> tuple[str, ...]:
        """Take the scores of a moment in; returns those that brought an alarm.

        Args:
            seconds: camera time, of any origin. A moment before the last one counts to its bin.
            values: by score; missing and not finite ones are left out.

        Raises:
            ConfigurationError: a score that was not announced.
        """
        if unknown := set(values) - set(self._watches):
            raise ConfigurationError(f"Unknown score {min(unknown)!r}.")
        now = math.floor(seconds * self.rate_hz)
        alarms: tuple[str, ...] = ()
        if self._bin is None or now > self._bin:
            alarms = self._close()
            self._bin = now
        for name, value in values.items():
            if math.isfinite(value):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = total + value, count + 1
        return alarms

    def rereference(self) -> None:
        """Learn anew what is usual: the world is another one, and that is known."""
        for watch in self._watches.values():
            watch.begin()
        self._sums.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the bin under way, as values that JSON can hold."""
        return {name: watch.state_dict() for name, watch in self._watches.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: other scores.
        """
        if set(state) != set(self._watches):
            raise ConfigurationError(
                f"The state is of the scores {sorted(state)}, not {sorted(self._watches)}."
            )
        for name, watch in self._watches.items():
            watch.load_state_dict(state[name])
        self._bin = None
        self._sums.clear()

    def _close(self) -> tuple[str, ...]:
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        return tuple(name for name, mean in means.items() if self._watches[name].update(mean))


class _Watch:
    """One score: its reference, and then its detector."""

    def __init__(
        self,
        make: MakeDetector,
        *,
        steps: float,
        least: float,
        seed: int,
        executor: Executor | None,
    ) -> None:
        self._make, self._steps, self._least = make, steps, least
        self._seed, self._executor = seed, executor
        self.begin()

    def begin(self) -> None:
        """Collect a reference."""
        self._detector: CalibratedDetector | None = None
        self._reference: list[float] = []
        self._next_look = _FIRST_LOOK
        self._learning, self._stand_in = True, 0  # values that the present one rests on
        self._made: Future[CalibratedDetector] | None = None

    @property
    def calibrated(self) -> bool:
        if self._detector is None or self._learning or self._made is not None:
            return False
        return self._detector.calibrated

    @property
    def warning(self) -> bool:
        return self._detector is not None and self._detector.warning

    def deviation(self, value: float) -> float:
        return math.nan if self._detector is None else self._detector.deviation(value)

    def update(self, value: float) -> bool:
        """Whether the value brought an alarm."""
        if self._made is not None and self._made.done():
            self._detector, self._made = self._made.result(), None
        alarm = False
        if self._detector is not None:
            self._detector.update(value)
            alarm = self._detector.drift_detected
        if self._learning:
            self._reference.append(value)
            if len(self._reference) >= self._next_look and self._made is None:
                self._look()
        return alarm

    def state_dict(self) -> dict[str, Any]:
        detector = None if self._detector is None else self._detector.state_dict()
        return {"detector": detector, "reference": list(self._reference)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.begin()
        self._reference = [float(value) for value in state["reference"]]
        while self._next_look <= len(self._reference) and self._next_look < _LONGEST_REFERENCE:
            self._next_look = _later(self._next_look)
        if state["detector"] is not None:
            self._learning, self._stand_in = bool(self._reference), len(self._reference)
            model = AutoRegression.from_state_dict(state["detector"]["model"])
            self._detector = self._make(model, expected_run_steps=self._steps, threshold=0.0)
            self._detector.load_state_dict(state["detector"])

    def _look(self) -> None:
        """Make a detector of the reference so far where one is due."""
        known = len(self._reference)
        model = AutoRegression.fit(self._reference)
        promised = model.calibrated and known >= self._least
        last = promised or known >= _LONGEST_REFERENCE
        if last or (known >= 2 * self._stand_in and model.effective >= _STAND_IN):
            self._stand_in = known
            if not promised:
                model = AutoRegression.fit(self._reference, carried=_CARRIED)
            settings = {"expected_run_steps": self._steps, "seed": self._seed}
            if self._executor is None:
                self._detector = self._make(model, **settings)
            else:
                self._made = self._executor.submit(self._make, model, **settings)
        if last:
            self._learning = False
            self._reference.clear()
        else:
            self._next_look = _later(self._next_look)


def _later(look: int) -> int:
    return min(look * 5 // 4, _LONGEST_REFERENCE)


class FleetAlarm:
    """What pages people: alarms of so many cameras within a window of time.

    One camera's alarm is a bumped lens or a false one; five at once are the weather, or a release.

    Args:
        cameras: so many different ones.
        window_seconds: within so long.

    Raises:
        ConfigurationError: fewer than one camera, or a window that is not positive.
    """

    def __init__(self, *, cameras: int, window_seconds: float) -> None:
        if cameras < 1 or not (window_seconds > 0.0 and math.isfinite(window_seconds)):
            raise ConfigurationError(
                "`cameras` must be at least 1 and `window_seconds` positive and finite, got "
                f"{cameras} and {window_seconds}."
            )
        self.cameras, self.window_seconds = int(cameras), float(window_seconds)
        self._alarms: deque[tuple[float, Hashable]] = deque()

    def observe(self, seconds: float, camera: Hashable) -> tuple[Hashable, ...]:
        """Take a camera's alarm in; returns the cameras behind a fleet's alarm, or none.

        After one, counting begins anew. Times must not go back by more than the window.
        """
        self._alarms.append((seconds, camera))
        latest = max(when for when, _ in self._alarms)
        recent = [pair for pair in self._alarms if pair[0] > latest - self.window_seconds]
        self._alarms = deque(recent)
        behind = tuple(dict.fromkeys(name for _, name in recent))
        if len(behind) < self.cameras:
            return ()
        self._alarms.clear()
        return behind
