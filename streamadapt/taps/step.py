"""What a tap does during one step: stage moments, and move inputs onto other statistics."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from streamadapt.bank import BankLayout
from streamadapt.errors import StreamError
from streamadapt.moments import Moments
from streamadapt.ops.collect import Scratch, StagedMoments, collect
from streamadapt.ops.reduce import FrameMoments
from streamadapt.transfer import upload

Coefficients = Callable[[int], tuple[Tensor, Tensor]]
"""From a layer's index to `scale` and `shift` of its input, `[rows, channels]` fp32."""


class Staging:
    """All layers' moments of a step in one tensor, `[entries, 2, channels]` fp32.

    Grows to the largest batch seen and then stays.
    """

    def __init__(self, layout: BankLayout) -> None:
        self._layout = layout
        self._buffer: Tensor | None = None
        self._views: dict[int, list[Tensor]] = {}
        self._positions: dict[tuple[float, ...], tuple[Tensor, Tensor]] = {}
        self.scratch = Scratch()

    def gather(
        self, staged: Sequence[StagedMoments | None], positions: Sequence[float], entries: int
    ) -> FrameMoments:
        """Copy every layer's moments into place.

        Args:
            staged: of each layer, `[entries, channels]`; None where it was not executed.
            positions: of each layer, zero where it was not executed.
            entries: batch size.
        """
        device = next(one.mean.device for one in staged if one is not None)
        buffer = self._buffer
        if buffer is None or buffer.shape[0] < entries or buffer.device != device:
            # Padding channels have mean 0 and variance 1 for ever.
            buffer = torch.zeros(entries, 2, self._layout.padded_channels, device=device)
            buffer[:, 1] = 1.0
            self._buffer = buffer
            self._views.clear()
            self._positions.clear()
        views = self._views_of(entries)
        if None in staged:
            for index, one in enumerate(staged):
                if one is None:
                    views[2 * index].zero_()
                    views[2 * index + 1].fill_(1.0)
            views = [view for i, view in enumerate(views) if staged[i // 2] is not None]
        torch._foreach_copy_(views, [part for one in staged if one is not None for part in one])
        rows = buffer[:entries]
        mean, var = StagedMoments(rows[:, 0], rows[:, 1]).moments()
        return FrameMoments(mean, var, *self._spread(tuple(positions)))

    def _views_of(self, entries: int) -> list[Tensor]:
        """Mean, inverse, mean, inverse, ... of the layers in turn."""
        assert self._buffer is not None
        if entries not in self._views:
            if len(self._views) >= 8:
                self._views.clear()
            rows = self._buffer[:entries]
            self._views[entries] = [
                rows[:, field, layer.span] for layer in self._layout.layers for field in (0, 1)
            ]
        return self._views[entries]

    def _spread(self, positions: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Positions of each channel and of each layer."""
        assert self._buffer is not None
        if positions not in self._positions:
            if len(self._positions) >= 8:
                self._positions.clear()
            per_layer = upload(torch.tensor(positions, dtype=torch.float64), self._buffer.device)
            self._positions[positions] = (self._layout.per_channel(per_layer), per_layer)
        return self._positions[positions]


class Step:
    """One armed step of a tap, seen by the thread that started it and by no other.

    Args:
        layout: the bank's layout; layer indices refer to it.
        entries: batch size, or None to take the leading dimension of the first layer.
        rows: the row of each batch entry as an index into the rows of this step, `[entries]`;
            None when there is one row.
        frames_per_row: leading-dimension items that a layer has for each batch entry.
        observe: stage moments.
        staging: where they go.
        exact: take moments exactly rather than fast.
    """

    def __init__(
        self,
        layout: BankLayout,
        *,
        entries: int | None,
        rows: Tensor | None,
        frames_per_row: int,
        observe: bool,
        staging: Staging,
        exact: bool,
    ) -> None:
        self.thread = threading.get_ident()
        self.layout = layout
        self.entries = entries
        self.observe = observe
        self.coefficients: Coefficients | None = None
        self.positions = [0.0] * len(layout.layers)
        self._only: int | None = None
        self._rows = rows
        self._frames_per_row = frames_per_row
        self._staging = staging
        self._exact = exact
        self._staged: list[StagedMoments | None] = [None] * len(layout.layers)

    def observe_only(self, index: int) -> None:
        """Stage the moments of one layer and of no other."""
        self.observe = True
        self._only = index

    @property
    def unobserved(self) -> tuple[str, ...]:
        """Names of layers that were not executed, or not through their tap."""
        pairs = zip(self.layout.layers, self.positions, strict=True)
        return tuple(layer.name for layer, positions in pairs if not positions)

    def visit(self, index: int, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """See a layer's input; returns the coefficients to move it by, `[frames, channels]`."""
        if self.observe and x.numel() > 0 and self._only in (None, index):
            self._stage(index, x.detach())
        if self.coefficients is None:
            return None
        scale, shift = self.coefficients(index)
        if self._rows is None:
            return scale.expand(x.shape[0], -1), shift.expand(x.shape[0], -1)
        rows = self._rows_at(index, x.shape[0])
        return scale[rows], shift[rows]

    def frame_moments(self, index: int) -> FrameMoments | None:
        """What was staged of one layer, `[entries, channels]`; None if it was not executed."""
        staged = self._staged[index]
        if staged is None:
            return None
        mean, var = staged.moments()
        positions = torch.full_like(mean[0], self.positions[index])
        return FrameMoments(mean, var, positions, positions[:1])

    def all_moments(self) -> FrameMoments:
        """What was staged of all layers; those that were not executed have zero positions."""
        assert self.entries is not None
        return self._staging.gather(self._staged, self.positions, self.entries)

    def _stage(self, index: int, x: Tensor) -> None:
        entries, (items, _, *spatial) = self.entries, x.shape
        if entries is None:
            entries = self.entries = items
        staged = collect(x, scratch=self._staging.scratch, exact=self._exact)
        positions = float(math.prod(spatial))
        if items != entries or self._staged[index] is not None:
            seen = self._per_entry(*staged.moments(), positions)
            earlier = self.frame_moments(index)
            if earlier is not None:
                seen = Moments(earlier.positions, earlier.mean, earlier.var).merge(seen)
            positions = float(seen.count.flatten()[0])
            staged = StagedMoments(seen.mean.float(), seen.var.rsqrt().float())
        self._staged[index] = staged
        self.positions[index] = positions

    def _per_entry(self, mean: Tensor, var: Tensor, positions: float) -> Moments:
        """Bring a layer's leading dimension to one item a batch entry."""
        assert self.entries is not None
        items, entries = mean.shape[0], self.entries
        count = torch.full((), positions * items / entries, dtype=torch.float64)
        if items == entries:
            return Moments(count, mean, var)
        # Frames of an entry lie together; a leading dimension that does not divide is pooled
        # whole and shared out evenly, which is right for a single row.
        groups = entries if items == entries * self._frames_per_row else 1
        mean = mean.view(groups, -1, mean.shape[1])
        spread, centre = torch.var_mean(mean, dim=1, correction=0)
        within = var.view_as(mean).mean(dim=1)
        return Moments(count, centre.expand(entries, -1), (within + spread).expand(entries, -1))

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
