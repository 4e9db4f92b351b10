"""What a tap does during one step: stage moments, and move inputs onto other statistics."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamadapt.errors import StreamError
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments
from streamadapt.ops.collect import Scratch, StagedMoments, collect
from streamadapt.ops.reduce import FrameMoments
from streamadapt.taps.partials import Partials
from streamadapt.taps.statistics import FramesOwn
from streamadapt.transfer import upload

if TYPE_CHECKING:
    from streamadapt.alignment.step import HeadStep
    from streamadapt.taps.kernels import Normalisation
    from streamadapt.taps.refolding import Refolding


@dataclass(frozen=True, eq=False)
class Settling:
    """What a settling pass needs to know.

    Attributes:
        weights: `[rows, entries]` float64, 0 for frames that it is not for; None: for all.
        trust: how much each frame counts, as in the step that it belongs to.
    """

    weights: Tensor | None
    trust: Tensor | None


Coefficients = Callable[[int], tuple[Tensor, Tensor]]
"""From a layer's index to `scale` and `shift` of its input, `[rows, channels]` fp32."""


class Staging:
    """Lines all layers' moments of a step up as the bank has them."""

    def __init__(self, layout: BankLayout) -> None:
        self._layout = layout
        ends = [layer.start for layer in layout.layers[1:]] + [layout.padded_channels]
        self._gaps = [end - layer.stop for layer, end in zip(layout.layers, ends, strict=True)]
        self._fillers: dict[tuple[int, int, torch.device], StagedMoments] = {}
        self._positions: dict[tuple[tuple[float, ...], torch.device], tuple[Tensor, Tensor]] = {}
        self.scratch = Scratch()
        self.partials = Partials(layout)
        self._room: Tensor | None = None

    def room(self, entries: int) -> Tensor:
        """Mean and variance of all layers' frames, `[2, entries, padded channels]` float64.

        Kernels that write moments where they are wanted do so here. The next step writes over it.
        """
        channels = self._layout.padded_channels
        if self._room is None or self._room.shape[1] != entries:
            with torch.inference_mode(False):
                self._room = torch.zeros(2, entries, channels, dtype=torch.float64)
        return self._room

    def complete(
        self,
        room: Tensor,
        staged: Sequence[StagedMoments | None],
        direct: Sequence[bool],
        positions: Sequence[float],
    ) -> FrameMoments:
        """As `gather`, where the moments of some layers were written to `room` directly."""
        mean, var = room
        left = () if all(direct) else zip(self._layout.layers, staged, direct, strict=True)
        for layer, one, is_direct in left:
            if is_direct:
                continue
            if one is None:
                mean[:, layer.span], var[:, layer.span] = 0.0, 1.0
            else:
                mean[:, layer.span], var[:, layer.span] = one.moments()
        return FrameMoments(mean, var, *self._spread(tuple(positions), mean.device))

    def gather(
        self, staged: Sequence[StagedMoments | None], positions: Sequence[float], entries: int
    ) -> FrameMoments:
        """All layers' moments side by side, `[entries, padded channels]`.

        Args:
            staged: of each layer, `[entries, channels]`; None where it was not executed.
            positions: of each layer, zero where it was not executed.
            entries: batch size.
        """
        device = next(one.mean.device for one in staged if one is not None)
        parts: list[StagedMoments] = []
        for layer, gap, one in zip(self._layout.layers, self._gaps, staged, strict=True):
            parts.append(one or self._filler(entries, layer.channels, device))
            if gap:
                parts.append(self._filler(entries, gap, device))
        fields = [part.mean for part in parts] + [part.inverse for part in parts]
        mean, inverse = torch.cat(fields, dim=1).double().chunk(2, dim=1)
        return FrameMoments(
            *StagedMoments(mean, inverse).moments(), *self._spread(tuple(positions), device)
        )

    def _filler(self, entries: int, channels: int, device: torch.device) -> StagedMoments:
        """Mean 0 and deviation 1, for channels that nothing was observed of."""
        key = (entries, channels, device)
        if key not in self._fillers:
            if len(self._fillers) >= 256:
                self._fillers.clear()
            zeros = torch.zeros(entries, channels, device=device)
            self._fillers[key] = StagedMoments(zeros, torch.ones_like(zeros))
        return self._fillers[key]

    def _spread(self, positions: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions of each channel and of each layer."""
        key = (positions, device)
        if key not in self._positions:
            if len(self._positions) >= 8:
                self._positions.clear()
            per_layer = upload(torch.tensor(positions, dtype=torch.float64), device)
            self._positions[key] = (self._layout.per_channel(per_layer), per_layer)
        return self._positions[key]


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

    Attributes:
        rows: as given.
        positions: of a frame at each layer that was executed, else zero.
        staged: moments of each layer, where they are not
        direct: written to `room` already.
        failure: what the estimator raised inside the forward, in synchronous timing.
        coefficients: what inputs are moved by; None: not at all.
        own: corrects single frames; None: no frame is.
        head: what happens at the aligned head in this step; None without one.
        settling: set where the step is a settling pass.
        fused: normalises with compiled kernels; None: the layers do so themselves.
        folded: layers that show their output instead of the BatchNorm's input; None: there are
            none.
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
        self.own: FramesOwn | None = None
        self.failure: Exception | None = None
        self.head: HeadStep | None = None
        self.settling: Settling | None = None
        self.fused: Normalisation | None = None
        self.folded: Refolding | None = None
        self.positions = [0.0] * len(layout.layers)
        self._only: int | None = None
        self.rows = rows
        self._frames_per_row = frames_per_row
        self._staging = staging
        self._exact = exact
        self.staged: list[StagedMoments | None] = [None] * len(layout.layers)
        self.direct = [False] * len(layout.layers)
        self._room: Tensor | None = None
        self._outputs: set[int] = set()  # whose moments in `room` are of outputs

    def observe_only(self, index: int) -> None:
        """Stage the moments of one layer and of no other."""
        self.observe = True
        self._only = index

    @property
    def unobserved(self) -> tuple[str, ...]:
        """Names of layers that were not executed, or not through their tap."""
        if 0.0 not in self.positions:
            return ()
        pairs = zip(self.layout.layers, self.positions, strict=True)
        return tuple(layer.name for layer, positions in pairs if not positions)

    def visit(self, index: int, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """See a layer's input; returns the coefficients to move it by, `[frames, channels]`.

        A folded layer's output takes the input's place.
        """
        coefficients = self._visit(index, x)
        if coefficients is None or self.folded is None or index not in self.folded.indices:
            return coefficients
        return self.folded.outputs(index, *coefficients)

    def _visit(self, index: int, x: Tensor) -> tuple[Tensor, Tensor] | None:
        staged, items = None, x.shape[0]
        wanted = self.observe and x.numel() > 0 and self._only in (None, index)
        if wanted and not self._wrote_output(index, x):
            staged = self._stage(index, x.detach())
        if self.own is None and self.coefficients is None:
            return None
        rows = self.rows_at(index, items)
        if self.own is not None and x.numel() > 0:
            if not self.own.measures(index, math.prod(x.shape[2:])):
                staged = None
            elif staged is None:
                staged = self._collect(index, x.detach())
            found = self.own.coefficients(index, staged, items, rows)
            if found is not None:
                return found
        if self.coefficients is None:
            return None
        scale, shift = self.coefficients(index)
        if rows is None:
            return scale.expand(items, -1), shift.expand(items, -1)
        return scale[rows], shift[rows]

    def _wrote_output(self, index: int, x: Tensor) -> bool:
        """Whether a kernel put a folded layer's moments to the others', to be recovered with them.

        Those that frames are judged by are asked for at once.
        """
        if self.folded is None or self.fused is None or index not in self.folded.indices:
            return False
        if self.own is not None and self.own.measures(index, math.prod(x.shape[2:])):
            return False
        if not self.fused.observe(index, x):
            return False
        self._outputs.add(index)
        return True

    def seen(self, index: int) -> bool:
        """Whether a layer was executed before, or nothing is staged of it alone."""
        if self._only not in (None, index):
            return True
        return self.direct[index] or self.staged[index] is not None

    def rows_at(self, index: int, items: int) -> Tensor | None:
        """The row of each item of a layer's leading dimension; None where there is one."""
        return None if self.rows is None else self._rows_at(index, items)

    @property
    def room(self) -> Tensor:
        """Where moments are written directly; see `Staging.room`."""
        if self._room is None:
            assert self.entries is not None
            self._room = self._staging.room(self.entries)
        return self._room

    @property
    def partials(self) -> Partials:
        """Where kernels on a device put the sums that moments are made of."""
        return self._staging.partials

    def wrote(self, index: int, positions: int) -> None:
        """The moments of a layer are in `room`, or will be when the forward has ended."""
        self.direct[index] = True
        self.positions[index] = float(positions)

    def frame_moments(self, index: int) -> FrameMoments | None:
        """What was staged of one layer, `[entries, channels]`; None if it was not executed."""
        staged = self.staged[index]
        if self.direct[index]:
            mean, var = self.room[:, :, self.layout.layers[index].span]
            if index in self._outputs:
                assert self.folded is not None
                mean, var = self.folded.recover_wide(index, mean, var)
        elif staged is None:
            return None
        else:
            mean, var = staged.moments()
        positions = torch.full_like(mean[0], self.positions[index])
        return FrameMoments(mean, var, positions, positions[:1])

    def all_moments(self) -> FrameMoments:
        """What was staged of all layers; those that were not executed have zero positions."""
        assert self.entries is not None
        if self._room is not None:
            if self._outputs:
                assert self.folded is not None
                self.folded.recover_in_place(self._room, frozenset(self._outputs))
                self._outputs.clear()
            return self._staging.complete(self._room, self.staged, self.direct, self.positions)
        return self._staging.gather(self.staged, self.positions, self.entries)

    def _collect(self, index: int, x: Tensor) -> StagedMoments:
        if self.folded is None or index not in self.folded.indices:
            return collect(x, scratch=self._staging.scratch, exact=self._exact)
        found = None if self.fused is None else self.fused.moments(index, x)
        if found is None:
            found = collect(x, scratch=self._staging.scratch, exact=self._exact)
        return self.folded.recover(index, found)

    def _stage(self, index: int, x: Tensor) -> StagedMoments:
        """Remember a layer's moments for the commit; returns those of its items."""
        entries, (items, _, *spatial) = self.entries, x.shape
        if entries is None:
            entries = self.entries = items
        collected = staged = self._collect(index, x)
        positions = float(math.prod(spatial))
        if items != entries or self.seen(index):
            seen = self._per_entry(*staged.moments(), positions)
            earlier = self.frame_moments(index)
            if earlier is not None:
                seen = Moments(earlier.positions, earlier.mean, earlier.var).merge(seen)
                self.direct[index] = False
                self._outputs.discard(index)
            positions = float(seen.count.flatten()[0])
            staged = StagedMoments(seen.mean.float(), seen.var.rsqrt().float())
        self.staged[index] = staged
        self.positions[index] = positions
        return collected

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
        rows = self.rows
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
