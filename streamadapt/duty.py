"""Which batches adapt, where not all of them do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from streamadapt.estimators.memory import MAX_SECONDS_PER_FRAME

# After a frame that is unlike its row, until there is enough for an estimator to conclude from;
# after an alarm, as long as a settling in doubt.
_SUSPICION_SECONDS, _ALERT_SECONDS, _ALERT_FRAMES = 0.64, 10.24, 16


@dataclass
class _Row:
    """Since the row's latest batch that adapted.

    Attributes:
        batches: how many there were.
        seconds: camera time of their frames.
        alert_seconds: camera time that every batch adapts for.
        alert_frames: frames that every batch adapts for.
    """

    batches: int = 0
    seconds: float = 0.0
    alert_seconds: float = 0.0
    alert_frames: int = 0

    @property
    def alert(self) -> bool:
        return self.alert_seconds > 0.0 or self.alert_frames > 0


class DutyCycle:
    """Lets every k-th batch of a row adapt, and more of them where that would be too few.

    A batch adapts where any of its rows is due: it is the row's k-th; the row was not seen before,
    or was put on another state; it settles, or there was an alarm; or its frames would have to
    stand for more than a second each. Frames in between are time that passed, not frames that were
    seen.

    Args:
        every: k.
        settling: which rows settle, as far as it is known.
    """

    def __init__(self, every: int, *, settling: Callable[[Sequence[int]], Sequence[bool]]) -> None:
        self.every, self._settling = every, settling
        self._rows: dict[int, _Row] = {}

    def due(
        self, rows: Sequence[int], elapsed_seconds: Sequence[float], frames: Iterable[int]
    ) -> bool:
        """Whether a batch adapts.

        Args:
            rows: of the batch.
            elapsed_seconds: of each row, since its previous frames.
            frames: of each row.
        """
        if self.every == 1 or any(self._settling(rows)):
            return True
        return any(
            self._is_due(self._rows.get(row), elapsed, count)
            for row, elapsed, count in zip(rows, elapsed_seconds, frames, strict=True)
        )

    def _is_due(self, one: _Row | None, elapsed: float, frames: int) -> bool:
        if one is None or one.alert or one.batches + 1 >= self.every:
            return True
        # The next batch comes as late as this one did.
        return one.seconds + 2.0 * elapsed > frames * MAX_SECONDS_PER_FRAME

    def since(self, rows: Sequence[int], elapsed_seconds: Sequence[float]) -> list[float]:
        """Camera time of rows since their latest batch that adapted."""
        if self.every == 1:
            return list(elapsed_seconds)
        return [
            elapsed + (self._rows[row].seconds if row in self._rows else 0.0)
            for row, elapsed in zip(rows, elapsed_seconds, strict=True)
        ]

    def passed(
        self,
        rows: Sequence[int],
        elapsed_seconds: Sequence[float],
        frames: Iterable[int],
        *,
        adapted: bool,
    ) -> None:
        """A batch went through; arguments as for `due`."""
        if self.every == 1:
            return
        for row, elapsed, count in zip(rows, elapsed_seconds, frames, strict=True):
            one = self._rows.setdefault(row, _Row())
            if adapted:
                one.batches, one.seconds = 0, 0.0
                one.alert_seconds = max(one.alert_seconds - elapsed, 0.0)
                one.alert_frames = max(one.alert_frames - count, 0)
            else:
                one.batches, one.seconds = one.batches + 1, one.seconds + elapsed

    def suspect(self, rows: Iterable[int]) -> None:
        """Some frame was unlike its row."""
        self._alert(rows, _SUSPICION_SECONDS)

    def alarmed(self, row: int) -> None:
        """There was an alarm."""
        self._alert([row], _ALERT_SECONDS)

    def _alert(self, rows: Iterable[int], seconds: float) -> None:
        if self.every == 1:
            return
        for row in rows:
            one = self._rows.setdefault(row, _Row())
            one.alert_seconds = max(one.alert_seconds, seconds)
            one.alert_frames = max(one.alert_frames, _ALERT_FRAMES)

    def forget(self, rows: Iterable[int]) -> None:
        """Rows were put on another state, or belong to other streams."""
        for row in rows:
            self._rows.pop(row, None)
