"""How alike frames on end are, and so how much many of them say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from streamadapt.guard.places import Places
from streamadapt.transfer import upload

_LARGEST = 0.99  # correlation
_COUNT, _SQUARES, _PAIRS, _MOVED, _PLAIN = range(5)  # columns, the last one the first of the values


class Likeness:
    """Correlation of what is said of a frame with what is said of the one before, in each row.

    Of values `v`, vectors: `rho = 1 - mean |v_t - v_(t-1)|^2 / (2 (mean |v|^2 - |mean v|^2))`. As
    many values are worth `(1 - rho) / (1 + rho)` of them. Values that never move are worth next to
    nothing, a hundredth.

    Args:
        rows: of the bank.
        window_frames: over how many frames, about.
    """

    def __init__(self, rows: int, *, window_frames: float) -> None:
        self._rows, self._window = rows, window_frames
        self._sums: Tensor | None = None
        self._last: Tensor | None = None

    def add(self, rows: Sequence[int], entries: Sequence[int], values: Tensor) -> Tensor:
        """The correlation in each of the rows, `[rows]` float64, from 0 to 0.99.

        Args:
            rows: distinct rows.
            entries: index into `rows` for each frame.
            values: `[frames, n]`.
        """
        values = values.double()
        sums, last = self._room(values)
        places = Places(tuple(rows), tuple(entries), values.device)
        held = last.index_select(0, places.index)
        moved = (values - places.before(held, values)).square().sum(dim=1)
        pairs = moved.isfinite()
        columns = (
            torch.ones_like(moved),
            values.square().sum(dim=1),
            pairs.double(),
            moved.where(pairs, 0.0),
        )
        new = places.per_row(torch.cat([torch.stack(columns, dim=1), values], dim=1))
        keep = (1.0 - new[:, :1] / self._window).clamp(min=0.0)
        whole = sums.index_select(0, places.index) * keep + new
        sums.index_copy_(0, places.index, whole)
        last.index_copy_(0, places.index, places.last(held, values))
        count = whole[:, _COUNT].clamp(min=1e-300)
        mean = whole[:, _PLAIN:] / count[:, None]
        spread = whole[:, _SQUARES] / count - mean.square().sum(dim=1)
        step = whole[:, _MOVED] / whole[:, _PAIRS].clamp(min=1e-300)
        alike = 1.0 - step / (2.0 * spread).clamp(min=1e-12)
        return alike.clamp(0.0, _LARGEST).where(whole[:, _PAIRS] > 0.0, 0.0)

    def forget(self, rows: Iterable[int]) -> None:
        """Begin anew."""
        if self._sums is None or self._last is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            index = upload(torch.tensor(list(rows), dtype=torch.long), self._sums.device)
            self._sums.index_fill_(0, index, 0.0)
            self._last.index_fill_(0, index, math.nan)

    def _room(self, values: Tensor) -> tuple[Tensor, Tensor]:
        width, device = values.shape[1], values.device
        sums, last = self._sums, self._last
        if sums is None or last is None or last.shape[1] != width or last.device != device:
            sums = torch.zeros(self._rows, _PLAIN + width, dtype=torch.float64, device=device)
            last = torch.full((self._rows, width), math.nan, dtype=torch.float64, device=device)
        self._sums, self._last = sums, last
        return sums, last
