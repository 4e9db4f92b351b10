"""Adapted answers by themselves: whether they say less, or waver more, than is usual."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamadapt.guard.answers import Answers
from streamadapt.guard.known import Health
from streamadapt.guard.sums import AnswerSums

_EVERY_SECONDS = 0.25 - 1e-9  # of camera time, from one look to the next
_WINDOW_FRAMES = 64.0  # that are looked at together
_KNOWN_FRAMES, _USUAL_FRAMES = 128.0, 1024.0  # until something is usual, and that make it
_LESS_INFORMATION, _MORE_FLIPS = 0.6, 0.15  # than usual, which is suspicious
_LEAST_INFORMATION = 0.02  # nats


@dataclass
class _Usual:
    since: float = _EVERY_SECONDS
    frames: float = 0.0
    information: float = 0.0
    flips: float = 0.0


class Looks:
    """Looks at the answers of every row now and then. Finds nothing out: says when to compare.

    Args:
        rows: of the bank.
    """

    def __init__(self, rows: int) -> None:
        self._sums = AnswerSums(rows, window_frames=_WINDOW_FRAMES)
        self._usual: dict[int, _Usual] = {}

    def due(self, rows: Sequence[int], elapsed_seconds: Sequence[float]) -> bool:
        """Let time pass for rows; whether any is to be looked at, then all of them are."""
        usual = [self._usual.setdefault(row, _Usual()) for row in rows]
        for one, elapsed in zip(usual, elapsed_seconds, strict=True):
            one.since += elapsed
        if all(one.since < _EVERY_SECONDS for one in usual):
            return False
        for one in usual:
            one.since = 0.0
        return True

    def look(
        self, steps: Sequence[int], rows: Sequence[int], entries: Sequence[int], output: Any
    ) -> Tensor | None:
        """Take answers in, `[rows, 5]` for `read`; None for outputs that are no class scores.

        Args:
            steps: that each row has had.
            rows: distinct rows.
            entries: index into `rows` for each frame.
            output: the model's, of these frames.
        """
        answers = Answers.of(output, len(entries))
        if answers is None:
            return None
        with torch.inference_mode(False), torch.no_grad():
            found = self._sums.add(steps, rows, entries, answers, apart=None)
            return torch.stack(
                [found.frames, found.information, found.flips, found.entropy, found.classes], dim=1
            )

    def read(self, row: int, frames: float, values: Sequence[float]) -> tuple[Health, bool]:
        """What a row's values say of the latest `frames`, and whether that is suspicious."""
        _, information, flips, entropy, classes = values
        one = self._usual.setdefault(row, _Usual())
        known = one.frames > _KNOWN_FRAMES
        less = information < _LESS_INFORMATION * one.information - _LEAST_INFORMATION
        suspicious = known and (less or flips > one.flips + _MORE_FLIPS)
        one.frames += frames
        weight = min(1.0, frames / min(one.frames, _USUAL_FRAMES))
        one.information += weight * (information - one.information)
        one.flips += weight * (flips - one.flips)
        return Health(entropy=entropy, classes=classes, flips=flips), suspicious

    def forget(self, rows: Iterable[int]) -> None:
        """Rows belong to other streams."""
        rows = list(rows)
        self._sums.forget(rows)
        for row in rows:
            self._usual.pop(row, None)
