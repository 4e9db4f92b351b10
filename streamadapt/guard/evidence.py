"""Adapted answers beside the source's, on the same frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from streamadapt.errors import DataError
from streamadapt.guard.answers import Answers, estimated_gain
from streamadapt.guard.likeness import Likeness
from streamadapt.guard.settings import Health
from streamadapt.guard.sums import AnswerSums
from streamadapt.transfer import upload

_WINDOW_FRAMES = 256.0
_LIKENESS_FRAMES = 64.0


class Evidence:
    """What comparisons add up to, for each row since its statistics were last put elsewhere.

    Args:
        rows: of the bank.
        health: judges answers; None: as class scores.
    """

    def __init__(self, rows: int, *, health: Health | None) -> None:
        self._rows, self._health = rows, health
        self._adapted = AnswerSums(rows, window_frames=_WINDOW_FRAMES)
        self._source = AnswerSums(rows, window_frames=_WINDOW_FRAMES)
        self._likeness = Likeness(rows, window_frames=_LIKENESS_FRAMES)
        self._sums: Tensor | None = None

    def add(
        self,
        steps: Sequence[int],
        rows: Sequence[int],
        entries: Sequence[int],
        adapted: Any,
        source: Any,
    ) -> Tensor | None:
        """Take the answers to some frames in.

        Args:
            steps: that each row has had, this one included.
            rows: distinct rows.
            entries: index into `rows` for each frame.
            adapted: the model's output for these frames.
            source: the same on the source's statistics.

        Returns:
            `[rows, 4]` float64: estimated gain in the share of right answers, frames it rests on,
            the share of equal answers among the new frames, NaN where that has no meaning, and how
            alike frames on end are, see `Likeness`. None for outputs that cannot be judged. A frame
            whose health is not finite counts as one without a difference.

        Raises:
            DataError: the health function did not return one number a frame.
        """
        frames = len(entries)
        if self._health is not None:
            return self._by_health(rows, entries, adapted, source)
        one, other = Answers.of(adapted, frames), Answers.of(source, frames)
        if one is None or other is None:
            return None
        if one.classes.shape != other.classes.shape:
            return None
        if one.probabilities.shape != other.probabilities.shape:
            return None
        with torch.inference_mode(False), torch.no_grad():
            ours = self._adapted.add(steps, rows, entries, one, apart=1)
            theirs = self._source.add(steps, rows, entries, other, apart=1)
            unequal = (one.classes != other.classes).double().mean(dim=1)
            new, whole = self._add(rows, entries, unequal)
            gain = estimated_gain(
                ours.information,
                theirs.information,
                ours.flips - theirs.flips,
                _mean(whole),
                ours.frames,
                one.probabilities.shape[1],
            )
            alike = self._likeness.add(
                rows, entries, torch.cat([one.probabilities, other.probabilities], dim=1)
            )
            return torch.stack([gain, ours.frames, 1.0 - new[:, 1] / new[:, 0], alike], dim=1)

    def forget(self, rows: Iterable[int]) -> None:
        """Begin anew: the statistics are others, or the row has another owner."""
        rows = list(rows)
        self._adapted.forget(rows)
        self._source.forget(rows)
        self._likeness.forget(rows)
        if self._sums is not None:
            self._sums[rows] = 0.0

    def _by_health(
        self, rows: Sequence[int], entries: Sequence[int], adapted: Any, source: Any
    ) -> Tensor:
        assert self._health is not None
        with torch.inference_mode(False), torch.no_grad():
            ours, theirs = self._health(adapted), self._health(source)
            for found in (ours, theirs):
                if not isinstance(found, Tensor) or found.shape != (len(entries),):
                    got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                    raise DataError(
                        f"The guard's `health` must return one number a frame, [{len(entries)}], "
                        f"got {got}."
                    )
            difference = ours.detach().double() - theirs.detach().double()
            finite = torch.nan_to_num(difference, nan=0.0, posinf=0.0, neginf=0.0)
            _, whole = self._add(rows, entries, finite)
            gain = _mean(whole)
            alike = self._likeness.add(rows, entries, finite[:, None])
            return torch.stack([gain, whole[:, 0], torch.full_like(gain, torch.nan), alike], dim=1)

    def _add(
        self, rows: Sequence[int], entries: Sequence[int], values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Numbers and sums of the new values, and of those of the window, each `[rows, 2]`."""
        device = values.device
        if self._sums is None or self._sums.device != device:
            self._sums = torch.zeros(self._rows, 2, dtype=torch.float64, device=device)
        index = upload(torch.tensor(rows), device)
        stated = torch.stack([torch.ones_like(values), values], dim=1)
        new = torch.zeros(len(rows), 2, dtype=torch.float64, device=device)
        new = new.index_add(0, upload(torch.tensor(entries), device), stated)
        keep = (1.0 - new[:, :1] / _WINDOW_FRAMES).clamp(min=0.0)
        whole = self._sums.index_select(0, index) * keep + new
        self._sums[index] = whole
        return new, whole


def _mean(sums: Tensor) -> Tensor:
    return sums[:, 1] / sums[:, 0].clamp(min=1e-300)
