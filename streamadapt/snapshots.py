"""Named copies of committed state, a bounded number of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from streamadapt.bank import RowState
from streamadapt.errors import SnapshotError

SOURCE = "source"
"""The name of the state that every stream starts from; always there."""


@dataclass(frozen=True)
class Snapshot:
    """State of some streams after `step` steps; `state` has one row a stream."""

    name: str
    step: int
    streams: tuple[Hashable, ...]
    state: RowState

    def select(self, streams: Sequence[Hashable]) -> RowState:
        """The rows of some of its streams.

        Raises:
            SnapshotError: it does not hold one of them.
        """
        for stream in streams:
            if stream not in self.streams:
                held = ", ".join(repr(known) for known in self.streams)
                raise SnapshotError(
                    f"Snapshot {self.name!r} does not hold stream {stream!r} (it holds {held})."
                )
        return self.state.take([self.streams.index(stream) for stream in streams])


class SnapshotRing:
    """Snapshots by name, oldest first.

    Args:
        capacity: how many are kept; taking another one drops the oldest.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[str, Snapshot] = OrderedDict()

    def free_name(self, step: int) -> str:
        """A name that is not in use."""
        name, serial = f"step-{step}", 2
        while name in self._kept:
            name, serial = f"step-{step}.{serial}", serial + 1
        return name

    def add(self, snapshot: Snapshot) -> str | None:
        """Keep a snapshot, replacing one of its name; returns the name that had to go."""
        self._kept.pop(snapshot.name, None)
        self._kept[snapshot.name] = snapshot
        if len(self._kept) > self._capacity:
            return self._kept.popitem(last=False)[0]
        return None

    def get(self, name: str | None) -> Snapshot:
        """A snapshot by name; None is the latest.

        Raises:
            SnapshotError: there is none of that name, or none at all.
        """
        if name is None:
            if not self._kept:
                raise SnapshotError(
                    "Cannot roll back: no snapshot has been taken. Call processor.snapshot() "
                    f'first, or roll back to "{SOURCE}".'
                )
            return next(reversed(self._kept.values()))
        if name not in self._kept:
            known = ", ".join(repr(kept) for kept in self._kept) or "none taken yet"
            raise SnapshotError(
                f'No snapshot named {name!r} (taken: {known}). "{SOURCE}" is always there.'
            )
        return self._kept[name]

    def clear(self) -> tuple[str, ...]:
        """Drop all; returns their names."""
        names = tuple(self._kept)
        self._kept.clear()
        return names

    @property
    def names(self) -> tuple[str, ...]:
        """Names, oldest first."""
        return tuple(self._kept)
