"""A betting test: whether outputs are as sure as they were on the source."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from streamadapt.drift.detector import Detector
from streamadapt.errors import ConfigurationError

_LEAST_SOURCE = 20
_LARGEST_BET = 1.8  # of 2, at which everything may be lost at once
_PACE = 0.5  # of the bets, the step size of scale-free gradient descent
_WARNING = 0.1  # of the run time


class EntropyTest(Detector):
    """Bets that the entropy of outputs has another distribution than on the source.

    Each value goes through the source's distribution function: `u`, uniform while nothing has
    changed. A gambler who bets `e` on `u - 1/2` has `1 + e (u - 1/2) - |e| m` times his money after
    it, a game that is not in his favour then; the bet follows the gradient of the logarithm. `m`,
    two standard errors of the mean of `u` under a source of so few frames, is what the published
    test leaves out: without it a long run wins from what is wrong with the distribution function.
    A new gambler begins at each value, and the alarm comes when all of them together own more than
    `expected_run_steps`: not sooner on average than that, whatever the source's distribution, if
    the values are independent. Those of neighbouring frames are not: for them take the mean
    entropy of a second as a score of `EDetector`.

    Args:
        source: entropies of outputs on source frames, `[frames]`, 20 at least.
        expected_run_steps: mean number of values between false alarms, at least.
        seed: of the draws between equal values.

    Raises:
        ConfigurationError: too few source values, or a run time that is not above 1.

    Reference:
        Bar, Shaer, Romano, "Protected test-time adaptation via online entropy matching: a betting
        approach", 2024, arXiv:2408.07511; the restarts are those of arXiv:2203.03532.
    """

    _wealth: float
    _bet: float
    _slopes: float

    def __init__(self, source: ArrayLike, *, expected_run_steps: float, seed: int = 0) -> None:
        seen = np.asarray(source, dtype=np.float64).ravel()
        seen = np.sort(seen[np.isfinite(seen)])
        if len(seen) < _LEAST_SOURCE:
            raise ConfigurationError(
                f"`source` needs {_LEAST_SOURCE} finite entropies at least, got {len(seen)}."
            )
        if not (expected_run_steps > 1.0 and math.isfinite(expected_run_steps)):
            raise ConfigurationError(
                f"`expected_run_steps` must be finite and above 1, got {expected_run_steps}."
            )
        self._source, self._seed = seen, seed
        self._stake = _stake(len(seen))
        self.expected_run_steps = float(expected_run_steps)
        self.calibrated = True
        self.reset()

    def update(self, value: float) -> None:
        """Take the next entropy in."""
        self.drift_detected = self.warning = False
        if not math.isfinite(value):
            return
        off = self._rank(value) - 0.5
        if self._bet == 0.0:
            off = math.copysign(max(abs(off) - self._stake, 0.0), off)
        else:
            off -= math.copysign(self._stake, self._bet)
        self._wealth = (self._wealth + 1.0) * (1.0 + self._bet * off)
        slope = -off / (1.0 + self._bet * off)
        self._slopes += slope**2
        if self._slopes > 0.0:
            bet = self._bet - _PACE * slope / math.sqrt(self._slopes)
            self._bet = min(max(bet, -_LARGEST_BET), _LARGEST_BET)
        self.drift_detected = self._wealth >= self.expected_run_steps
        if self.drift_detected:
            self._forget()
        self.warning = self._wealth >= _WARNING * self.expected_run_steps

    def reset(self) -> None:
        """Begin anew."""
        self._steps = 0
        self.drift_detected = self.warning = False
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """See `Detector`."""
        names = ("source", *_STATE)
        values = {name: getattr(self, f"_{name}") for name in names}
        return {
            "kind": "EntropyTest",
            **values,
            "source": self._source.tolist(),
            "expected_run_steps": self.expected_run_steps,
            "drift_detected": self.drift_detected,
            "warning": self.warning,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Detector`."""
        if state.get("kind") != "EntropyTest":
            raise ConfigurationError(
                f"This is an EntropyTest; the state is a {state.get('kind')}'s."
            )
        self._source = np.asarray(state["source"], dtype=np.float64)
        self._stake = _stake(len(self._source))
        for name in _STATE:
            setattr(self, f"_{name}", state[name])
        self.expected_run_steps = float(state["expected_run_steps"])
        self.drift_detected, self.warning = bool(state["drift_detected"]), bool(state["warning"])

    def _rank(self, value: float) -> float:
        """The source's distribution function there, drawn between equal values; uniform."""
        below = np.searchsorted(self._source, value)
        upto = np.searchsorted(self._source, value, side="right")
        self._steps += 1
        drawn = np.random.default_rng([self._seed, self._steps]).random()
        share = (below + drawn * (upto - below + 1)) / (len(self._source) + 1)
        return float(share)

    def _forget(self) -> None:
        self._wealth = 0.0
        self._bet = 0.0
        self._slopes = 0.0

    def __repr__(self) -> str:
        return f"EntropyTest(expected_run_steps={self.expected_run_steps:g})"


def _stake(frames: int) -> float:
    """Two standard errors of the mean rank under the estimated distribution function."""
    return 2.0 * math.sqrt(1.0 / (12.0 * frames))


_STATE = ("seed", "steps", "wealth", "bet", "slopes")
