"""Detectors whose threshold follows from a reference and a stated expected run time."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Generator
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from streamadapt.drift.autoregression import AutoRegression, Simulation
from streamadapt.drift.detector import Detector
from streamadapt.drift.lagged import LaggedMoments
from streamadapt.errors import ConfigurationError

Array = NDArray[np.float64]
Evidence = dict[str, Array]
"""What a test remembers, arrays with the series in the last dimension."""
Series = NDArray[np.bool_] | slice
"""Some of them."""

EVERY = slice(None)
T = TypeVar("T")

_SERIES, _RUNS = 256, 64  # those of single residuals, and of runs of them
_SLICE_STEPS = 64  # over one more than the order
_LONGEST_STEPS = 10_000
_LEAST_STEPS = 2_000
_BLOCKS = 8  # a series is cut in so many, whose largest statistics are ranked
_TAIL = 0.1  # the largest part of them carries on where no series is long enough
_WARNING = 0.1  # of the run time
_NEAR = 0.75  # of a threshold that was given


class CalibratedDetector(Detector):
    """A sequential test on an autoregressive score.

    The threshold is found by a sieve bootstrap: series are simulated from the model of the
    reference, each begins with a reference of its own from which the model is fitted anew, so that
    errors of the mean, which cost more false alarms than anything else, are in the result. It is
    the level that the test's statistic exceeds once in `expected_run_steps` steps over all series.
    A fifth of them draw residuals in runs, for scores that come in bursts; without them the level
    is not lower.

    Args:
        model: of the reference, from `AutoRegression.fit`.
        expected_run_steps: mean number of steps between false alarms.
        threshold: of the statistic, for who knows better; None: from the bootstrap.
        seed: of the bootstrap.
        pause: called after every millisecond or so of the bootstrap, where others need the
            processor too; `PatientExecutor` fills it in.

    Raises:
        ConfigurationError: a run time that is not above 1.
    """

    def __init__(
        self,
        model: AutoRegression,
        *,
        expected_run_steps: float,
        threshold: float | None = None,
        seed: int = 0,
        pause: Callable[[], None] | None = None,
    ) -> None:
        if not (expected_run_steps > 1.0 and math.isfinite(expected_run_steps)):
            raise ConfigurationError(
                f"`expected_run_steps` must be finite and above 1, got {expected_run_steps}."
            )
        self.expected_run_steps = float(expected_run_steps)
        self._model = model
        self.calibrated = model.calibrated and threshold is None
        if threshold is None:
            search = self._search(np.random.default_rng(seed))
            self.threshold, self.warning_threshold = _result(search, pause)
        else:
            self.threshold, self.warning_threshold = threshold, _NEAR * threshold
        self.reset()

    @classmethod
    def fit(
        cls,
        reference: ArrayLike,
        *,
        expected_run_steps: float,
        logarithmic: bool | None = None,
        seed: int = 0,
    ) -> Self:
        """From the scores of a stretch without a change, `[steps]`."""
        model = AutoRegression.fit(reference, logarithmic=logarithmic)
        return cls(model, expected_run_steps=expected_run_steps, seed=seed)

    @abstractmethod
    def _begin(self, model: AutoRegression, series: int, dtype: DTypeLike = np.float64) -> Evidence:
        """No evidence yet."""

    @abstractmethod
    def _sweep(self, model: AutoRegression, evidence: Evidence, values: Array) -> Array:
        """The statistic with each of the next values, `[steps, series]`; changes `evidence`."""

    def _take(self, model: AutoRegression, evidence: Evidence, values: Array) -> Array:
        """The statistic with the next values of all series, `[series]`; changes `evidence`."""
        statistic: Array = self._sweep(model, evidence, values[None])[0]
        return statistic

    @abstractmethod
    def _forget(self, evidence: Evidence, series: Series = EVERY) -> None:
        """Drop the evidence for a change; what happened stays."""

    def update(self, value: float) -> None:
        """Take the next value in."""
        taken = self._model.transformed([value])
        self.drift_detected = self.warning = False
        if not np.isfinite(taken[0]):
            return
        statistic = float(self._take(self._model, self._evidence, taken)[0])
        self.drift_detected = statistic > self.threshold
        self.warning = not self.drift_detected and statistic > self.warning_threshold
        if self.drift_detected:
            self._forget(self._evidence)

    def deviation(self, value: float) -> float:
        """How many standard deviations a value lies above the reference's mean, as it is taken."""
        taken = float(self._model.transformed([value])[0])
        return (taken - float(self._model.mean)) / float(self._model.deviation)

    def reset(self) -> None:
        """Forget the evidence and the past values."""
        self._evidence = self._begin(self._model, 1)
        self.drift_detected = self.warning = False

    def state_dict(self) -> dict[str, Any]:
        """See `Detector`."""
        return {
            "kind": type(self).__name__,
            "model": self._model.state_dict(),
            "calibrated": self.calibrated,
            "threshold": self.threshold,
            "warning_threshold": self.warning_threshold,
            "expected_run_steps": self.expected_run_steps,
            "drift_detected": self.drift_detected,
            "warning": self.warning,
            "evidence": {name: array.tolist() for name, array in self._evidence.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Detector`."""
        if state.get("kind") != type(self).__name__:
            raise ConfigurationError(
                f"This is a {type(self).__name__}; the state is a {state.get('kind')}'s."
            )
        self._model = AutoRegression.from_state_dict(state["model"])
        self.calibrated = bool(state["calibrated"])
        self.threshold = float(state["threshold"])
        self.warning_threshold = float(state["warning_threshold"])
        self.expected_run_steps = float(state["expected_run_steps"])
        self.drift_detected, self.warning = bool(state["drift_detected"]), bool(state["warning"])
        self._evidence = {name: np.asarray(one) for name, one in state["evidence"].items()}

    def _search(self, rng: np.random.Generator) -> Generator[None, None, tuple[float, float]]:
        """Finds the threshold and the one of warnings, in slices of about a millisecond."""
        model, run = self._model, self.expected_run_steps
        known = max(len(model.residuals), 1)
        steps = int(min(max(run, _LEAST_STEPS), _LONGEST_STEPS))
        longest = max(_SLICE_STEPS // (model.order + 1), 4)
        series = _SERIES + _RUNS
        simulation = Simulation(model, series, rng, np.float32, runs=_RUNS)
        for _ in simulation.slices(simulation.settling_steps, longest=longest):
            yield
        moments = LaggedMoments(model.order, model.memory)
        for values in simulation.slices(known, longest=longest):
            moments.add(values - model.mean.astype(values.dtype))
            yield
        own = model.refitted_to(moments)
        evidence = self._begin(own, series, np.float32)
        self._sweep(own, evidence, simulation.drawn(model.order))  # what past values are for
        self._forget(evidence)
        largest, seen = np.full((_BLOCKS, series), -np.inf), 0
        for values in simulation.slices(steps, longest=longest):
            block = largest[seen * _BLOCKS // steps]
            np.maximum(block, self._sweep(own, evidence, values).max(axis=0), out=block)
            seen += len(values)
            yield
        asked, warned = (
            max(
                _exceeded_once_in(some.ravel(), time * _BLOCKS / steps)
                for some in (largest[:, :_SERIES], largest)
            )
            for time in (run, _WARNING * run)
        )
        return asked, warned

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(expected_run_steps={self.expected_run_steps:g}, "
            f"threshold={self.threshold:.4g}, calibrated={self.calibrated})"
        )


def _exceeded_once_in(largest: Array, blocks: float) -> float:
    """The level that the largest of a block exceeds once in so many blocks.

    Alarms come as in a Poisson process: a block has none with probability `exp(-1 / blocks)`.
    Beyond what was simulated the tail goes on exponentially.
    """
    share = -math.expm1(-1.0 / max(blocks, 1e-3))
    if share >= 10.0 / len(largest):
        return float(np.quantile(largest, 1.0 - share))
    start = float(np.quantile(largest, 1.0 - _TAIL))
    beyond = largest[largest > start] - start
    slope = float(beyond.mean()) if len(beyond) else start  # none: it can't say more
    return start + slope * math.log(_TAIL / share)


def _result(search: Generator[None, None, T], pause: Callable[[], None] | None) -> T:
    """What a search returns; `pause` is called between its slices."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            found: T = end.value
            return found
        if pause is not None:
            pause()
