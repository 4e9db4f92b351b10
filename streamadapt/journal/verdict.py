"""Whether adapting is worth it for a camera, from what a guard compared in shadow mode."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from streamadapt.errors import DataError
from streamadapt.journal.format import Header
from streamadapt.journal.reading import JournalReader
from streamadapt.journal.record import Payload
from streamadapt.journal.windows import WINDOW_FRAMES, Compared, Cut, student_interval, windows

Advice = Literal["adapt", "don't", "not enough evidence"]

LEAST_WINDOWS = 5
WORTH_GAIN = 0.01

_AGREEMENT_OF_EQUALS = 0.999
_TAKEN_BACK = ("shrink", "rollback", "pin")


@dataclass(frozen=True)
class Verdict:
    """What comparisons in shadow mode say of a stream.

    Attributes:
        stream: its name.
        frames: that were compared.
        windows: of 256 of them.
        gain: mean over the windows: estimated share of right answers won by adapting; None without
            a window.
        low: lower end of its 95 % interval: what chance has in it, not what labels would say. None
            with fewer than two windows; infinite where neighbours are so alike that all of them
            count for fewer than two.
        high: upper end, likewise.
        agreement: share of equal answers, adapted and source; None for outputs without classes.
        advice: with five windows or more, `don't` where `high` is below 0.01, and else `adapt`
            where `low` is above 0.
        acts: how often the guard did what, in either mode.
    """

    stream: str
    frames: int
    windows: int
    gain: float | None
    low: float | None
    high: float | None
    agreement: float | None
    advice: Advice
    acts: Mapping[str, int] = field(default_factory=dict)

    @property
    def hint(self) -> str:
        """Why, and what the guard had to do with it."""
        back = sum(self.acts.get(action, 0) for action in _TAKEN_BACK)
        if not self.acts:
            return self._reason
        if not back:
            return f"{self._reason}; the guard took nothing back"
        times = "once" if back == 1 else f"{back} times"
        keep = "keep the guard, which" if self.advice == "adapt" else "the guard"
        return f"{self._reason}; {keep} took statistics back {times}"

    @property
    def _reason(self) -> str:
        if self.windows < LEAST_WINDOWS or self.high is None:
            return f"record on: {LEAST_WINDOWS * WINDOW_FRAMES} compared frames are the least"
        if self.advice == "adapt":
            return "adapting wins answers"
        if self.advice == "not enough evidence":
            return "record on: it may be chance"
        if self.high < 0.0:
            return "adapting loses answers"
        if self.agreement is not None and self.agreement >= _AGREEMENT_OF_EQUALS:
            return "its answers are the source's, adapted or not"
        return f"less than {WORTH_GAIN:.0%} to win"


def verdicts(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
) -> dict[str, Verdict]:
    """Say for each stream whether adapting is worth it.

    Only comparisons made in shadow mode count. In adapt mode the guard compares what looks
    suspicious, which says little of the rest.

    Args:
        paths: folders that processors kept their journals in, or files of them. A record that is
            found twice counts once.

    Returns:
        By stream, with its folder before it where streams of several folders have one name. Empty
        where nothing was compared in shadow mode.

    Raises:
        DataError: no journal there, one that cannot be read, or none with a whole record.
    """
    places = [paths] if isinstance(paths, str | PathLike) else list(paths)
    runs: dict[tuple[Path, str], _Run] = {}
    for path in map(Path, places):
        folder = (path if path.is_dir() else path.parent).resolve()
        for header, payload in JournalReader(path):
            key = folder, header.run
            if key not in runs:
                runs[key] = _Run(len(runs), header)
            runs[key].take(payload)
    if not runs:
        raise DataError(f"{', '.join(map(str, places))}: the journal holds no whole record.")
    found: dict[tuple[Path, str], _Stream] = {}
    for (folder, _), run in runs.items():
        for stream, one in run.streams():
            found.setdefault((folder, stream), _Stream()).extend(one)
    found = {key: one for key, one in found.items() if one.compared}
    known = Counter(stream for _, stream in found)
    out = {}
    for (folder, stream), one in found.items():
        name = stream if known[stream] == 1 else f"{folder}: {stream}"
        out[name] = verdict_of(name, one.compared, cuts=one.cuts, acts=one.acts)
    return out


def verdict_of(
    stream: str,
    compared: Sequence[Compared],
    *,
    cuts: Sequence[Cut] = (),
    acts: Mapping[str, int] | None = None,
) -> Verdict:
    """What comparisons of a stream say.

    Args:
        stream: its name.
        compared: in any order.
        cuts: see `windows`.
        acts: how often the guard did what.
    """
    values = windows(compared, cuts)
    gain, low, high = student_interval(values)
    judged = [(one.frames, one.agreement) for one in compared if one.agreement is not None]
    agreement = None
    if judged:
        agreement = math.fsum(n * share for n, share in judged) / sum(n for n, _ in judged)
    advice: Advice = "not enough evidence"
    if len(values) >= LEAST_WINDOWS and low is not None and high is not None:
        if high < WORTH_GAIN:
            advice = "don't"
        elif low > 0.0:
            advice = "adapt"
    frames = sum(one.frames for one in compared)
    given = dict(acts or {})
    return Verdict(stream, frames, len(values), gain, low, high, agreement, advice, given)


@dataclass(eq=False)
class _Stream:
    """What journals say of one."""

    compared: list[Compared] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    acts: Counter[str] = field(default_factory=Counter)

    def extend(self, other: _Stream) -> None:
        self.compared += other.compared
        self.cuts += other.cuts
        self.acts += other.acts


class _Run:
    """The records of one processor, in whatever order they come.

    Args:
        number: of the run.
        header: of any of its files.
    """

    def __init__(self, number: int, header: Header) -> None:
        self._number = number
        self._steps: dict[int, int] = {}  # by sequence
        self._blind: set[int] = set()  # sequences of records that lack events
        self._cuts: list[Cut] = []
        self._modes: list[tuple[int, str]] = [(0, header.mode)]
        self._streams: dict[str, _Stream] = {}

    def take(self, payload: Payload) -> None:
        """Take a record in, once."""
        meta = payload.meta
        sequence, step = meta["sequence"], meta["step"]
        if sequence in self._steps:
            return
        self._steps[sequence] = step
        if meta["events_lost"]:
            self._blind.add(sequence)
        if meta["outcome"] == "idle":  # in shadow mode only; a header may be older than the mode
            self._modes.append((step, "shadow"))
        for place, origin in zip(meta["stated"], meta["origins"], strict=True):
            if origin != "kept":  # the guard forgot, too, before the step
                self._of(meta["streams"][place]).cuts.append(Cut((self._number, step)))
        for event in meta["events"]:
            self._take_event(event, event.get("event"), (self._number, event.get("step", step)))

    def streams(self) -> Iterable[tuple[str, _Stream]]:
        """What was found, without what was compared in adapt mode."""
        modes = sorted(self._modes)
        since = [step for step, _ in modes]
        cuts = [*self._cuts, *self._gaps()]
        for name, one in self._streams.items():
            compared = [
                each
                for each in one.compared
                if modes[bisect_right(since, each.at[1]) - 1][1] == "shadow"
            ]
            yield name, _Stream(compared, [*cuts, *one.cuts], one.acts)

    def _take_event(self, event: Mapping[str, Any], kind: str | None, at: tuple[int, int]) -> None:
        if kind == "AnswersCompared":
            gain, agreement = _finite(event["gain"]), _finite(event["agreement"])
            compared = Compared(at, event["frames"], gain, agreement)
            self._of(event["stream"]).compared.append(compared)
        elif kind == "GuardActed":
            self._of(event["stream"]).acts[event["action"]] += 1
        elif kind == "PhaseChanged":  # it does at the end of its step
            self._of(event["stream"]).cuts.append(Cut((at[0], at[1] + 1)))
        elif kind == "ModeChanged":
            self._modes.append((at[1], event["mode"]))
        elif kind == "BuffersRebound":  # on another device sums begin anew
            self._cuts.append(Cut(at, known=False))

    def _gaps(self) -> Iterable[Cut]:
        """Where events are missing that may have been comparisons, or cuts."""
        known = sorted(self._steps)
        first = known[0]
        yield Cut((self._number, 0), known=first == 0 and first not in self._blind)
        for before, after in pairwise(known):
            if after > before + 1 or after in self._blind:
                yield Cut((self._number, self._steps[before]), known=False)

    def _of(self, stream: object) -> _Stream:
        return self._streams.setdefault(str(stream), _Stream())


def _finite(value: object) -> float | None:
    """A number; None for what a journal has instead of one that is not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
