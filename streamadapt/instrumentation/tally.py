"""What a processor's events add up to: counts and durations, with a bounded number of series."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import get_args

from streamadapt import events as ev
from streamadapt.frames.urls import redacted

OTHER = "_other"
"""The label value under which everything beyond a bound is counted together."""

BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

MAX_REASONS = 16

COUNTERS: dict[str, tuple[str, ...]] = {
    "batches": (),
    "frames": ("stream",),
    "updates": ("outcome",),
    "rollbacks": ("reason",),
    "frames_rejected": ("stream", "reason"),
    "settling_passes": ("stream",),
    "settling_failures": (),
    "drift_alarms": ("stream", "by"),
    "fleet_drift_alarms": (),
    "guard_actions": ("stream", "action"),
    "compared_frames": ("stream",),
    "domain_recalls": ("stream",),
    "events": ("event",),
}
"""Names of the counters, each with the names of its labels."""

HISTOGRAMS = ("inference_duration_seconds", "update_duration_seconds")

_ATTEMPTED = frozenset({"updated", "rejected", "failed"})


@dataclass
class Histogram:
    """Durations, counted by bucket."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_SECONDS) + 1))
    total_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self.total_seconds += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper bounds as text, each with how many durations were not above it."""
        bounds = [*map(str, map(float, BUCKETS_SECONDS)), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class Labels:
    """Label values for the first `limit` distinct things, `_other` for the rest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}

    def of(self, thing: Hashable) -> str:
        """The label value of a thing."""
        text = redacted(str(thing))
        if text not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            # A name from a file system may hold what UTF-8 cannot say, and would break the scrape.
            self._known[text] = text.encode("utf-8", "replace").decode("utf-8")
        return self._known[text]


class Tally:
    """Adds events up; safe to read from another thread.

    Args:
        max_streams: how many streams are counted one by one.
    """

    def __init__(self, *, max_streams: int) -> None:
        self._lock = threading.Lock()
        self._streams = Labels(max_streams)
        self._reasons = Labels(MAX_REASONS)
        self._counts: dict[str, dict[tuple[str, ...], int]] = {name: {} for name in COUNTERS}
        # What can be known is there from the start, at zero: a rate needs a first value.
        self._counts["batches"] = {(): 0}
        self._counts["settling_failures"] = {(): 0}
        self._counts["fleet_drift_alarms"] = {(): 0}
        self._counts["updates"] = {(outcome,): 0 for outcome in get_args(ev.Outcome)}
        self._counts["events"] = {(kind.__name__,): 0 for kind in ev.Event.__subclasses__()}
        self._durations: dict[str, dict[str, Histogram]] = {name: {} for name in HISTOGRAMS}

    def add(self, event: ev.Event) -> None:
        """Count an event and what it says."""
        with self._lock:
            self._count("events", type(event).__name__)
            if isinstance(event, ev.StepCompleted):
                self._step(event)
            elif isinstance(event, ev.FramesRejected):
                stream = self._streams.of(event.stream)
                self._count("frames_rejected", stream, event.reason, by=event.frames)
            elif isinstance(event, ev.RolledBack):
                self._count("rollbacks", self._reasons.of(event.reason))
            elif isinstance(event, ev.SettlingPassed):
                for settling in event.streams:
                    self._count("settling_passes", self._streams.of(settling))
            elif isinstance(event, ev.SettlingFailed):
                self._count("settling_failures")
            elif isinstance(event, ev.DriftDetected):
                self._count("drift_alarms", self._streams.of(event.stream), event.by)
            elif isinstance(event, ev.FleetDriftDetected):
                self._count("fleet_drift_alarms")
            elif isinstance(event, ev.GuardActed):
                self._count("guard_actions", self._streams.of(event.stream), event.action)
            elif isinstance(event, ev.DomainRecalled):
                self._count("domain_recalls", self._streams.of(event.stream))
            elif isinstance(event, ev.AnswersCompared):
                self._count("compared_frames", self._streams.of(event.stream), by=event.frames)

    def stream_label(self, stream: Hashable) -> str:
        """The label value of a stream, which takes one of the places if any is left."""
        with self._lock:
            return self._streams.of(stream)

    def counts(self) -> dict[str, dict[tuple[str, ...], int]]:
        """A copy of all counters: by name, then by label values."""
        with self._lock:
            return {name: dict(counts) for name, counts in self._counts.items()}

    def durations(self) -> dict[str, dict[str, tuple[Sequence[tuple[str, float]], float]]]:
        """A copy of all histograms: by name, then by timing; cumulative buckets and sum."""
        with self._lock:
            return {
                name: {timing: (one.cumulative(), one.total_seconds) for timing, one in by.items()}
                for name, by in self._durations.items()
            }

    def _step(self, event: ev.StepCompleted) -> None:
        self._count("batches")
        self._count("updates", event.outcome)
        for stream, frames in event.frames.items():
            self._count("frames", self._streams.of(stream), by=frames)
        self._observe("inference_duration_seconds", event.timing, event.inference_seconds)
        if event.outcome in _ATTEMPTED:
            self._observe("update_duration_seconds", event.timing, event.update_seconds)

    def _count(self, name: str, *labels: str, by: int = 1) -> None:
        counts = self._counts[name]
        counts[labels] = counts.get(labels, 0) + by

    def _observe(self, name: str, timing: str, seconds: float) -> None:
        self._durations[name].setdefault(timing, Histogram()).add(seconds)
