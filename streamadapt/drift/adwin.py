"""A window that grows while its halves agree, and shrinks when they do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from streamadapt.drift.detector import Detector
from streamadapt.errors import ConfigurationError

_BUCKETS = 5  # of each size
_EVERY = 32  # values between looks for a cut
_LEAST_WINDOW, _LEAST_PART = 10, 5


@dataclass(frozen=True)
class _Bucket:
    """`count` values, their mean, and the sum of squares about it."""

    count: int
    mean: float
    squares: float

    def merge(self, other: _Bucket) -> _Bucket:
        """Both together, exactly (Chan)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        return _Bucket(
            count,
            self.mean + apart * other.count / count,
            self.squares + other.squares + apart**2 * self.count * other.count / count,
        )


class ADWIN(Detector):
    """Adaptive windowing: no reference, no threshold, a bound on the probability of each look.

    Every 32 values it looks for a place where the window's mean before and after differ by more
    than `sqrt(2 s^2 l / m) + 2 l / 3 m`, with `s^2` the window's variance, `m` the harmonic sum of
    the two lengths and `l = ln(2 ln(n) / delta)`, and drops what is older. The window is kept in
    buckets of 1, 2, 4, ... values, five of each size, so that memory grows with its logarithm.

    The bound is for independent values. Correlated ones, such as a camera's, bring many
    more false alarms; `calibrated` is always False.

    Args:
        delta: probability of a false alarm at a look, in (0, 1).

    Raises:
        ConfigurationError: `delta` out of range.

    Reference:
        Bifet, Gavaldà, "Learning from time-changing data with adaptive windowing", SDM 2007.
    """

    def __init__(self, *, delta: float = 0.002) -> None:
        if not 0.0 < delta < 1.0:
            raise ConfigurationError(f"`delta` must be between 0 and 1, got {delta}.")
        self.delta = float(delta)
        self.reset()

    @property
    def width(self) -> int:
        """Values in the window."""
        return sum(bucket.count for row in self._rows for bucket in row)

    @property
    def mean(self) -> float:
        """Of the window; NaN while it is empty."""
        return self._whole().mean if self._rows else math.nan

    def update(self, value: float) -> None:
        """Take the next value in."""
        self.drift_detected = False
        if not math.isfinite(value):
            return
        self._seen += 1
        self._insert(_Bucket(1, float(value), 0.0))
        if self._seen % _EVERY == 0 and self.width > _LEAST_WINDOW:
            while self._cut():
                self.drift_detected = True

    def reset(self) -> None:
        """Empty the window."""
        self._rows: list[list[_Bucket]] = []  # buckets of 1, 2, 4, ... values, oldest first
        self._seen = 0
        self.drift_detected = False

    def state_dict(self) -> dict[str, Any]:
        """See `Detector`."""
        rows = [[[b.count, b.mean, b.squares] for b in row] for row in self._rows]
        return {
            "kind": "ADWIN",
            "delta": self.delta,
            "seen": self._seen,
            "rows": rows,
            "drift_detected": self.drift_detected,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Detector`."""
        if state.get("kind") != "ADWIN":
            raise ConfigurationError(f"This is an ADWIN; the state is a {state.get('kind')}'s.")
        self.delta, self._seen = float(state["delta"]), int(state["seen"])
        self._rows = [[_Bucket(int(n), m, s) for n, m, s in row] for row in state["rows"]]
        self.drift_detected = bool(state["drift_detected"])

    def _insert(self, bucket: _Bucket) -> None:
        for row in self._rows:
            row.append(bucket)
            if len(row) <= _BUCKETS:
                return
            bucket = row.pop(0).merge(row.pop(0))
        self._rows.append([bucket])

    def _whole(self) -> _Bucket:
        buckets = [bucket for row in reversed(self._rows) for bucket in row]
        whole = buckets[0]
        for bucket in buckets[1:]:
            whole = whole.merge(bucket)
        return whole

    def _cut(self) -> bool:
        """Drop the oldest bucket if the window falls apart somewhere."""
        whole = self._whole()
        likely = math.log(2.0 * math.log(whole.count) / self.delta) if whole.count > 1 else 0.0
        variance = whole.squares / whole.count
        count, total = 0, 0.0
        for row in reversed(self._rows):
            for bucket in row:
                count += bucket.count
                total += bucket.count * bucket.mean
                left = whole.count - count
                if left < _LEAST_PART:
                    return False
                if count < _LEAST_PART:
                    continue
                apart = total / count - (whole.count * whole.mean - total) / left
                part = 1.0 / (1.0 / (count - _LEAST_PART + 1) + 1.0 / (left - _LEAST_PART + 1))
                bound = math.sqrt(2.0 * variance * likely / part) + 2.0 * likely / (3.0 * part)
                if abs(apart) > bound:
                    self._rows[-1].pop(0)
                    if not self._rows[-1]:
                        self._rows.pop()
                    return True
        return False

    def __repr__(self) -> str:
        return f"ADWIN(delta={self.delta:g}, width={self.width})"
