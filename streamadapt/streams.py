"""Which stream owns which row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from streamadapt.errors import StreamError

DEFAULT_STREAM = "default"
"""The stream of frames for which no other is named."""

WhenFull = Literal["error", "evict"]


@dataclass(frozen=True)
class Admission:
    """What a batch needs: its streams, their rows, and whom it displaces.

    Attributes:
        streams: the distinct streams of the batch, in order of first appearance.
        rows: the row of each of them.
        entries: for each batch entry, the index of its stream in `streams`.
        new: streams of `streams` that have no row yet.
        evicted: streams that lose theirs.
    """

    streams: tuple[Hashable, ...]
    rows: tuple[int, ...]
    entries: tuple[int, ...]
    new: tuple[Hashable, ...]
    evicted: tuple[Hashable, ...]


class StreamRows:
    """Rows in order of use, the least recently used first.

    Args:
        capacity: number of rows.
        when_full: what an unknown stream meets when every row is taken: an error, or the row of
            the stream that was longest without frames.
    """

    def __init__(self, capacity: int, *, when_full: WhenFull) -> None:
        self._capacity = capacity
        self.when_full = when_full
        self._rows: OrderedDict[Hashable, int] = OrderedDict()

    def plan(self, streams: Sequence[Hashable]) -> Admission:
        """Work out what a batch needs; changes nothing.

        Args:
            streams: one entry a frame.

        Raises:
            StreamError: more streams than rows.
        """
        index: dict[Hashable, int] = {}
        entries = tuple(index.setdefault(stream, len(index)) for stream in streams)
        distinct = tuple(index)
        new = tuple(stream for stream in distinct if stream not in self._rows)
        if not new:
            return Admission(distinct, tuple(self._rows[s] for s in distinct), entries, (), ())
        taken = set(self._rows.values())
        free = [row for row in range(self._capacity) if row not in taken]
        evicted: tuple[Hashable, ...] = ()
        if len(new) > len(free):
            missing = len(new) - len(free)
            idle = [stream for stream in self._rows if stream not in index]
            if self.when_full == "error" or missing > len(idle):
                raise StreamError(self._full(new[len(free)], len(distinct)))
            evicted = tuple(idle[:missing])
            free += [self._rows[stream] for stream in evicted]
        fresh = dict(zip(new, free, strict=False))
        rows = tuple(fresh[s] if s in fresh else self._rows[s] for s in distinct)
        return Admission(distinct, rows, entries, new, evicted)

    def apply(self, admission: Admission) -> None:
        """Carry a plan out."""
        for stream in admission.evicted:
            del self._rows[stream]
        for stream, row in zip(admission.streams, admission.rows, strict=True):
            self._rows[stream] = row
            self._rows.move_to_end(stream)

    def save(self) -> OrderedDict[Hashable, int]:
        """The assignment as it is, for `load`."""
        return self._rows.copy()

    def load(self, saved: OrderedDict[Hashable, int]) -> None:
        """Put an assignment made by `save` back."""
        self._rows = saved

    def row(self, stream: Hashable | None) -> int:
        """The row of a stream; None means the only one there is.

        Raises:
            StreamError: unknown stream, or None while there are several.
        """
        return self._rows[self.resolve(stream)]

    def name(self, row: int) -> Hashable:
        """The stream that owns a row."""
        return next(stream for stream, own in self._rows.items() if own == row)

    def resolve(self, stream: Hashable | None) -> Hashable:
        """The stream meant by `stream`: None is the only one, or the default one."""
        if stream is None:
            if len(self._rows) == 1:
                return next(iter(self._rows))
            if DEFAULT_STREAM in self._rows:
                return DEFAULT_STREAM
            raise StreamError(f"Say which stream: {self._known()}.")
        if stream not in self._rows:
            raise StreamError(f"Unknown stream {stream!r}: {self._known()}.")
        return stream

    def remove(self, stream: Hashable) -> int:
        """Give a stream's row back; returns it."""
        return self._rows.pop(self.resolve(stream))

    @property
    def streams(self) -> tuple[Hashable, ...]:
        """All streams that have a row, the least recently used first."""
        return tuple(self._rows)

    def _known(self) -> str:
        if not self._rows:
            return "no stream has been seen yet"
        shown = ", ".join(repr(stream) for stream in list(self._rows)[:8])
        return f"{len(self._rows)} known ({shown}{', …' if len(self._rows) > 8 else ''})"

    def _full(self, stream: Hashable, needed: int) -> str:
        if needed > self._capacity:
            return (
                f"The batch has {needed} streams, the bank has {self._capacity} rows. Raise "
                "`max_streams`, or send fewer streams in one batch."
            )
        return (
            f"No row for stream {stream!r}: all {self._capacity} are taken. Raise `max_streams`, "
            'call drop_stream() for a stream that has ended, or set `when_full="evict"`.'
        )
