"""Moving sums over the answers of each stream, on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamadapt.guard.answers import Answers, information
from streamadapt.transfer import upload

_FRAMES, _ENTROPY, _PAIRS, _FLIPS = range(4)
_PLAIN = 4  # columns before the classes'


@dataclass(frozen=True, eq=False)
class Summary:
    """Of some rows, each `[rows]` float64.

    Attributes:
        frames: how many it rests on, the older ones counting less.
        information: of answers about frames, nats.
        entropy: mean of single answers, nats.
        flips: share of neighbouring frames that are answered differently; 0 without neighbours.
        classes: effective number of classes answered, exp of the entropy of the mean answer.
    """

    frames: Tensor
    information: Tensor
    entropy: Tensor
    flips: Tensor
    classes: Tensor


class AnswerSums:
    """Answers of every row, those of the latest frames above all.

    Args:
        rows: of the bank.
        window_frames: over how many frames, about.
    """

    def __init__(self, rows: int, *, window_frames: float) -> None:
        self._rows, self._window = rows, window_frames
        self._sums: Tensor | None = None
        self._last: Tensor | None = None
        self._last_step: dict[int, int] = {}

    def add(
        self,
        steps: Sequence[int],
        rows: Sequence[int],
        entries: Sequence[int],
        answers: Answers,
        *,
        apart: int | None,
    ) -> Summary:
        """Take answers in, in the order of their frames.

        Args:
            steps: that each row has had, this one included.
            rows: distinct rows.
            entries: index into `rows` for each frame.
            answers: of these frames.
            apart: a row's frames before are neighbours of these if they are at most so many of its
                steps ago; None: however long ago.
        """
        sums, last = self._room(answers)
        device = sums.device
        counts = [0] * len(rows)
        before: list[int] = []  # the neighbour of each frame: place in the batch, or minus its row
        latest: dict[int, int] = {}
        for place, entry in enumerate(entries):
            row = rows[entry]
            since = self._last_step.get(row)
            known = since is not None and (apart is None or steps[entry] - since <= apart)
            outside = -1 - row if known else place
            before.append(latest.get(entry, outside))
            latest[entry] = place
            counts[entry] += 1
        place_of = upload(torch.tensor(before), device)
        own = answers.classes
        neighbour = torch.where(
            (place_of >= 0)[:, None],
            own.index_select(0, place_of.clamp(min=0)),
            last.index_select(0, (-1 - place_of).clamp(min=0)),
        )
        is_pair = upload(
            torch.tensor([b != k for k, b in enumerate(before)], dtype=torch.float64), device
        )
        flips = is_pair * (own != neighbour).double().mean(dim=1)
        stated = torch.cat(
            [
                torch.ones_like(answers.entropy)[:, None],
                answers.entropy[:, None],
                is_pair[:, None],
                flips[:, None],
                answers.probabilities,
            ],
            dim=1,
        )
        index = upload(torch.tensor(rows), device)
        left = [[max(0.0, 1.0 - n / self._window)] for n in counts]
        keep = upload(torch.tensor(left, dtype=torch.float64), device)
        new = torch.zeros(len(rows), stated.shape[1], dtype=torch.float64, device=device)
        new = new.index_add(0, upload(torch.tensor(entries), device), stated)
        whole = sums.index_select(0, index) * keep + new
        sums[index] = whole
        present = [rows[entry] for entry in latest]
        last[upload(torch.tensor(present), device)] = own.index_select(
            0, upload(torch.tensor(list(latest.values())), device)
        )
        self._last_step.update({rows[entry]: steps[entry] for entry in latest})
        return _summary(whole)

    def forget(self, rows: Iterable[int]) -> None:
        """Begin anew."""
        for row in rows:
            self._last_step.pop(row, None)
            if self._sums is not None:
                self._sums[row] = 0.0

    def _room(self, answers: Answers) -> tuple[Tensor, Tensor]:
        width, device = _PLAIN + answers.probabilities.shape[1], answers.entropy.device
        sums, last = self._sums, self._last
        if sums is None or sums.shape[1] != width or sums.device != device:
            sums = torch.zeros(self._rows, width, dtype=torch.float64, device=device)
            self._last_step.clear()
        positions = answers.classes.shape[1]
        if last is None or last.shape[1] != positions or last.device != device:
            last = torch.zeros(self._rows, positions, dtype=torch.long, device=device)
            self._last_step.clear()
        self._sums, self._last = sums, last
        return sums, last


def _summary(sums: Tensor) -> Summary:
    frames = sums[:, _FRAMES]
    mean = sums / frames.clamp(min=1e-300)[:, None]
    tells = information(mean[:, _PLAIN:], mean[:, _ENTROPY])
    return Summary(
        frames=frames,
        information=tells,
        entropy=mean[:, _ENTROPY],
        flips=sums[:, _FLIPS] / sums[:, _PAIRS].clamp(min=1e-300),
        classes=(tells + mean[:, _ENTROPY]).exp(),
    )
