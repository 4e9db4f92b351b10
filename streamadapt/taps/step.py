"""What a tap does during one step: stage moments, and move inputs onto other statistics."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamadapt.bank import BankLayout
from streamadapt.errors import StreamError
from streamadapt.moments import Moments
from streamadapt.ops.collect import Scratch, collect
from streamadapt.ops.reduce import FrameMoments

Coefficients = Callable[[int], tuple[Tensor, Tensor]]
"""From a layer's index to `scale` and `shift` of its input, `[rows, channels]` fp32."""


@dataclass(frozen=True, eq=False)
class Staged:
    """Moments of one layer in one step, per batch entry: `[entries, channels]` fp32."""

    mean: Tensor
    var: Tensor
    positions: float

    def merge(self, other: Staged) -> Staged:
        """Both calls of a layer that runs more than once, by count."""
        total = self.positions + other.positions
        blended = Moments(torch.zeros(()), self.mean, self.var).blend(
            Moments(torch.zeros(()), other.mean, other.var), other.positions / total
        )
        return Staged(blended.mean, blended.var, total)


class Step:
    """One armed step of a tap, seen by the thread that started it and by no other.

    Args:
        layout: the bank's layout; layer indices refer to it.
        entries: batch size, or None to take the leading dimension of the first layer.
        rows: the row of each batch entry as an index into the rows of this step, `[entries]`.
        row_count: how many rows take part.
        frames_per_row: leading-dimension items that a layer has for each batch entry.
        observe: stage moments.
        scratch: working memory.
    """

    def __init__(
        self,
        layout: BankLayout,
        *,
        entries: int | None,
        rows: Tensor | None,
        row_count: int,
        frames_per_row: int,
        observe: bool,
        scratch: Scratch,
    ) -> None:
        self.thread = threading.get_ident()
        self.layout = layout
        self.entries = entries
        self.observe = observe
        self.coefficients: Coefficients | None = None
        self.staged: list[Staged | None] = [None] * len(layout.layers)
        self._only: int | None = None
        self._rows = rows
        self._row_count = row_count
        self._frames_per_row = frames_per_row
        self._scratch = scratch

    def observe_only(self, index: int) -> None:
        """Stage the moments of one layer and of no other."""
        self.observe = True
        self._only = index

    @property
    def unobserved(self) -> tuple[str, ...]:
        """Names of layers that were not executed, or not through their tap."""
        pairs = zip(self.layout.layers, self.staged, strict=True)
        return tuple(layer.name for layer, staged in pairs if staged is None)

    def visit(self, index: int, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """See a layer's input; returns the coefficients to move it by, `[frames, channels]`."""
        if self.observe and x.shape[0] > 0 and self._only in (None, index):
            self._stage(index, x)
        if self.coefficients is None:
            return None
        scale, shift = self.coefficients(index)
        if self._row_count == 1:
            return scale.expand(x.shape[0], -1), shift.expand(x.shape[0], -1)
        rows = self._rows_at(index, x.shape[0])
        return scale[rows], shift[rows]

    def _stage(self, index: int, x: Tensor) -> None:
        with torch.no_grad():
            mean, var = collect(x, self._scratch)
            if self.entries is None:
                self.entries = x.shape[0]
            positions = float(math.prod(x.shape[2:]))
            staged = self._per_entry(Staged(mean, var, positions))
            earlier = self.staged[index]
            self.staged[index] = staged if earlier is None else earlier.merge(staged)

    def _per_entry(self, seen: Staged) -> Staged:
        """Bring a layer's leading dimension to one item a batch entry."""
        assert self.entries is not None
        items, entries = seen.mean.shape[0], self.entries
        if items == entries:
            return seen
        # Frames of an entry lie together; a leading dimension that does not divide is pooled
        # whole and shared out evenly, which is right for a single row.
        groups = entries if items == entries * self._frames_per_row else 1
        mean = seen.mean.view(groups, -1, seen.mean.shape[1])
        var = seen.var.view_as(mean)
        spread, centre = torch.var_mean(mean, dim=1, correction=0)
        return Staged(
            centre.expand(entries, -1),
            (var.mean(dim=1) + spread).expand(entries, -1),
            seen.positions * items / entries,
        )

    def _rows_at(self, index: int, items: int) -> Tensor:
        """The row of each item of a layer's leading dimension."""
        rows = self._rows
        assert rows is not None
        if items == rows.shape[0]:
            return rows
        if items == rows.shape[0] * self._frames_per_row:
            return rows.repeat_interleave(self._frames_per_row)
        raise StreamError(
            f"`streams=` cannot be mapped at layer {self.layout.layers[index].name!r}: its input "
            f"has {items} items for a batch of {rows.shape[0]}. If every batch entry becomes the "
            "same number of frames, lying together, give it as `frames_per_row=`; otherwise use "
            "one processor a stream."
        )


class Staging:
    """The step's moments of all layers in one tensor, ready for the commit.

    Grows to the largest batch seen and then stays; padding channels are zero.
    """

    def __init__(self, layout: BankLayout) -> None:
        self._layout = layout
        self._buffer: Tensor | None = None
        self._views: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._positions: dict[tuple[float, ...], Tensor] = {}

    def gather(self, step: Step, device: torch.device) -> FrameMoments:
        """Everything `step` staged; layers that were not executed have zero positions."""
        entries = step.entries or 0
        with torch.inference_mode(False), torch.no_grad():
            if (
                self._buffer is None
                or self._buffer.shape[0] < entries
                or self._buffer.device != device
            ):
                self._buffer = torch.zeros(entries, 2, self._layout.padded_channels, device=device)
                self._views.clear()
                self._positions.clear()
            views = self._views_of(entries)
            targets: list[Tensor] = []
            values: list[Tensor] = []
            for (mean, var), staged in zip(views, step.staged, strict=True):
                if staged is None:
                    mean.zero_()
                    var.zero_()
                else:
                    targets += (mean, var)
                    values += (staged.mean, staged.var)
            torch._foreach_copy_(targets, values)
            buffer = self._buffer[:entries]
            positions = self._positions_of(step.staged, device)
            return FrameMoments(buffer[:, 0], buffer[:, 1], positions)

    def _views_of(self, entries: int) -> list[tuple[Tensor, Tensor]]:
        if entries not in self._views:
            if len(self._views) >= 8:
                self._views.clear()
            assert self._buffer is not None
            rows = self._buffer[:entries]
            self._views[entries] = [
                (rows[:, 0, layer.span], rows[:, 1, layer.span]) for layer in self._layout.layers
            ]
        return self._views[entries]

    def _positions_of(self, staged: Sequence[Staged | None], device: torch.device) -> Tensor:
        key = tuple(0.0 if one is None else one.positions for one in staged)
        if key not in self._positions:
            if len(self._positions) >= 8:
                self._positions.clear()
            per_layer = torch.tensor(key, dtype=torch.float64).to(device)
            self._positions[key] = self._layout.per_channel(per_layer)
        return self._positions[key]
