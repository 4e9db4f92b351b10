"""Which feature vector of a batch belongs to which row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamadapt.transfer import upload


class FrameGroups:
    """The items of a batch side by side for each row, `[rows, most, ...]`, padded to the longest.

    So that all rows of a step go through one batched product: a map gathered for each frame would
    be a `[D, D]` matrix a frame, and a loop would be one launch a row.

    Args:
        entries: index into the rows of the step for each item; None when there is one row.
        rows: number of rows.
        device: where the items are.

    Attributes:
        present: `[rows, most, 1]` float64, zero for padding; a plain one for a single row.
    """

    def __init__(self, entries: Sequence[int] | None, *, rows: int, device: torch.device) -> None:
        self.present = torch.ones(1, 1, 1, dtype=torch.float64, device=device)
        self._slots: Tensor | None = None
        if entries is None:
            return
        members: list[list[int]] = [[] for _ in range(rows)]
        home = []
        for item, entry in enumerate(entries):
            home.append((entry, len(members[entry])))
            members[entry].append(item)
        most = max(len(one) for one in members)
        slots = [one + [0] * (most - len(one)) for one in members]
        real = [[1] * len(one) + [0] * (most - len(one)) for one in members]
        index = upload(
            torch.tensor(
                [
                    *(slot for one in slots for slot in one),
                    *(flag for one in real for flag in one),
                    *(row * most + place for row, place in home),
                ],
                dtype=torch.long,
            ),
            device,
        )
        size = rows * most
        self._shape = (rows, most)
        self._slots, self._home = index[:size], index[2 * size :]
        self.present = index[size : 2 * size].view(rows, most, 1).double()

    def gather(self, items: Tensor) -> Tensor:
        """`[items, n]` to `[rows, most, n]`; padding repeats the first item."""
        if self._slots is None:
            return items.unsqueeze(0)
        return items.index_select(0, self._slots).view(*self._shape, items.shape[1])

    def scatter(self, grouped: Tensor) -> Tensor:
        """`[rows, most, n]` back to `[items, n]`."""
        if self._slots is None:
            return grouped.squeeze(0)
        return grouped.flatten(0, 1).index_select(0, self._home)
