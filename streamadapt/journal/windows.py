"""Independent windows out of a guard's comparisons, and what chance has in their mean.

The gain that a comparison reports looks back over the latest 256 compared frames, the older ones
counting less: what it is 256 frames later still rests on them by a third. So it is not taken as it
is. The guard's sums after a comparison are `S = k S' + s`, with `S'` what they were when the last
window was taken, `k` what is left of that, and `s` of the new frames alone; frames and gain of `S`
and `S'` are known, and `gain(s) = (|S| gain(S) - k |S'| gain(S')) / (|S| - k |S'|)`. That is exact
for a mean over frames, and holds to first order for the rest. Windows have frames of their own
then, and none is lost where statistics are put elsewhere, such as the bad ones before a rollback.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WINDOW_FRAMES = 256

_WINDOWS_FOR_CORRELATION = 8  # with fewer its estimate is noise
# 97.5 % quantiles of Student's t, rounded up. Degrees of freedom in between count as the next
# lower ones, which errs on the wide side.
_DEGREES = (*range(1, 31), 40, 60, 120)
_QUANTILES = (
    *(12.707, 4.303, 3.183, 2.777, 2.571, 2.447, 2.365, 2.307, 2.263, 2.229),
    *(2.201, 2.179, 2.161, 2.145, 2.132, 2.120, 2.110, 2.101, 2.094, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.049, 2.046, 2.043),
    *(2.022, 2.001, 1.980),
)

Place = tuple[int, int]
"""Number of a run, and of a step in it."""


@dataclass(frozen=True)
class Compared:
    """A comparison.

    Attributes:
        at: when.
        frames: that were new in it.
        gain: over the latest 256; None where it has no value.
        agreement: among the new ones; None where that has no meaning.
    """

    at: Place
    frames: int
    gain: float | None
    agreement: float | None = None


@dataclass(frozen=True)
class Cut:
    """From here on the guard's sums began anew, or (not `known`) nobody knows from what."""

    at: Place
    known: bool = True


def windows(compared: Sequence[Compared], cuts: Sequence[Cut] = ()) -> list[float]:
    """Gain of each 256 compared frames, or a few more, from those frames alone.

    Args:
        compared: of one stream, in any order.
        cuts: beside the first comparison, before which there was nothing.
    """
    apart = _Apart()
    waiting = sorted(cuts, key=lambda cut: cut.at, reverse=True)
    for one in sorted(compared, key=lambda one: one.at):
        while waiting and waiting[-1].at <= one.at:
            apart.cut(known=waiting.pop().known)
        if one.gain is None:
            apart.cut(known=False)
        else:
            apart.add(one.frames, one.gain)
    return apart.windows


def student_interval(
    values: Sequence[float],
) -> tuple[float | None, float | None, float | None]:
    """Mean, and the ends of its 95 % interval: Student's with `n_eff - 1` degrees of freedom.

    `n_eff = n (1 - r) / (1 + r)`, `r` the correlation of neighbours, where that is positive and
    there are eight values; else `n`.

    Returns:
        None for what there are too few values for. Ends are infinite where `n_eff` is below 2.

    Example:
        >>> mean, low, high = student_interval([0.1, 0.2, 0.3, 0.2, 0.1])
        >>> print(f"{mean:.2f} [{low:.3f}, {high:.3f}]")
        0.18 [0.076, 0.284]
    """
    n = len(values)
    if n == 0:
        return None, None, None
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None, None
    apart = [value - mean for value in values]
    squares = math.fsum(one * one for one in apart)
    if squares == 0.0:
        return mean, mean, mean
    r = 0.0
    if n >= _WINDOWS_FOR_CORRELATION:
        r = max(math.fsum(one * other for one, other in pairwise(apart)) / squares, 0.0)
    effective = n * (1.0 - r) / (1.0 + r)
    half = student_quantile(effective - 1.0) * math.sqrt(squares / (n - 1) / effective)
    return mean, mean - half, mean + half


def student_quantile(degrees: float) -> float:
    """97.5 % quantile of Student's t, from a table; infinite below one degree of freedom."""
    place = bisect_right(_DEGREES, degrees)
    return _QUANTILES[place - 1] if place else math.inf


class _Apart:
    """Takes the guard's sums apart again; see the module's docstring."""

    def __init__(self) -> None:
        self.windows: list[float] = []
        self._sum = self._frames = 0.0  # of the window under way
        self._whole: float | None = 0.0  # |S|
        self._old = self._old_sum = 0.0  # k |S'|, k |S'| gain(S')
        self._new, self._gain = 0, 0.0

    def add(self, frames: int, gain: float) -> None:
        """Take a comparison in."""
        if self._whole is None:  # what is in it beside its own frames nobody knows
            self._whole = self._old = float(max(WINDOW_FRAMES, frames))
            self._old_sum = self._whole * gain
            return
        keep = max(0.0, 1.0 - frames / WINDOW_FRAMES)
        self._whole = self._whole * keep + frames
        self._old, self._old_sum = self._old * keep, self._old_sum * keep
        self._new, self._gain = self._new + frames, gain
        if self._frames + self._new >= WINDOW_FRAMES:
            self._take()
            self.windows.append(self._sum / self._frames)
            self._sum = self._frames = 0.0

    def cut(self, *, known: bool) -> None:
        """The sums begin anew, or from something unknown."""
        self._take()
        self._whole = 0.0 if known else None
        self._old = self._old_sum = 0.0

    def _take(self) -> None:
        """Put the new frames into the window under way."""
        if self._whole is None or not self._new:
            return
        whole = self._whole * self._gain
        own = (whole - self._old_sum) / (self._whole - self._old)
        self._sum, self._frames = self._sum + own * self._new, self._frames + self._new
        self._old, self._old_sum, self._new = self._whole, whole, 0
