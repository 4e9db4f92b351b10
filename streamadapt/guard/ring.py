"""Former states of a stream, close together in the near past and far apart in the distant one."""

from __future__ import annotations

from streamadapt.bank import RowState

_EVERY_FRAMES = 256.0


class StateRing:
    """Copies of one row, spaced so that the ages grow about geometrically.

    A state may have been hurt before that is noticed, nobody knows how long: there is one that is
    a little older than the delay, whatever it was, and a few that are much older.

    Args:
        capacity: how many are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: list[tuple[float, RowState]] = []  # oldest first

    def due(self, frames: float) -> bool:
        """Whether a copy is to be taken, after so many frames of the stream."""
        return not self._kept or frames - self._kept[-1][0] >= _EVERY_FRAMES

    def add(self, frames: float, state: RowState) -> None:
        """Keep a copy; the one that is missed least goes, if there are too many."""
        self._kept.append((frames, state))
        if len(self._kept) > self._capacity:
            del self._kept[self._least_missed(frames)]

    def older_than(self, frames: float) -> RowState | None:
        """The newest copy that was taken before so many frames of the stream; forgets later ones.

        None where there is none.
        """
        self._kept = [kept for kept in self._kept if kept[0] <= frames]
        return self._kept[-1][1] if self._kept else None

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    @property
    def frames(self) -> tuple[float, ...]:
        """When the copies were taken, oldest first."""
        return tuple(when for when, _ in self._kept)

    def _least_missed(self, now: float) -> int:
        """The copy whose older neighbour is nearest to it beside its own age; never the oldest."""
        if len(self._kept) < 3:
            return 0
        ages = [now - when + _EVERY_FRAMES for when, _ in self._kept]
        gaps = [ages[k - 1] / ages[k + 1] for k in range(1, len(ages) - 1)]
        return 1 + gaps.index(min(gaps))
