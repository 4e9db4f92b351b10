"""Normalisation, addition, activation and moments in one pass over memory, on the CPU.

A layer whose input is not to be kept is written over; what follows it, where `chains` found that it
may be taken along, is done in the same pass. On the same statistics the result is PyTorch's to the
bit (in fp32, where a processor with fused multiplication is at hand).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamadapt.ops.collect import StagedMoments
from streamadapt.taps.statistics import ProposedStatistics, RowStatistics
from streamadapt.taps.step import Step

if TYPE_CHECKING:
    from streamadapt.taps.fused_tables import FusedTables, Plan

BYTES = 4  # of the tables' elements


class FusedStep:
    """One step's normalisation.

    Args:
        step: that it belongs to.
        tables: of the model's layers.
        statistics: what the layers are normalised with; None: what they hold, row 0 of the tables.
        now: statistics depend on the frames themselves, layer by layer.
        first: row of the tables that the step's rows start with.
        alike: it is the same for all rows.
        source: address of the source's statistics, `[2, padded channels]` fp32.
    """

    def __init__(
        self,
        step: Step,
        tables: FusedTables,
        *,
        statistics: RowStatistics | None,
        now: bool,
        first: int,
        alike: bool,
        source: int,
    ) -> None:
        self._step, self._tables = step, tables
        self._run, self._plans = tables.kernels.run_layer, tables.plans
        self._call = tables.kernels.handle.sa_run_layer  # the same, unchecked
        self._observe, self._direct, self._staged = step.observe, step.direct, step.staged
        self._positions = step.positions
        self._statistics, self._now = statistics, now
        self._alike, self._own, self._source = alike, step.own, source
        self._leaning: Tensor | None = None  # what `own` was told of frames that are corrected
        self._foreign_at = self._distances_at = 0
        self._rows = 0
        if step.entries is not None:
            if step.own is not None:
                self._distances_at, self._foreign_at = tables.of_frames(step.entries)
            if step.rows is not None and not alike:
                self._rows = tables.rows_of(step.rows)
        self._place = tables.address(first)
        self._stride = 4 * tables.padded
        self._shift = tables.padded * BYTES
        self._threads = torch.get_num_threads()
        self._room: int | None = None
        self._var = 0
        self._key = tables.key(self._calls())

    def _calls(self) -> tuple[Any, ...] | None:
        """What calls depend on, their inputs apart; None: on more than stays from step to step."""
        step, own = self._step, self._own
        if self._now or step.entries is None:
            return None
        room = self._moments_at() if step.observe or own is not None else None
        usual = None if own is None else (own.thresholds, self._foreign_at, self._source)
        return self._place, room, self._threads, step.observe, step.entries, self._rows, usual

    def _moments_at(self) -> int:
        """Address of the room for moments."""
        if self._room is None:
            self._room = self._step.room.data_ptr()
            self._var = self._step.room.stride(0) * 8
        return self._room

    def finish(self) -> None:
        """All moments are where they belong already."""

    def __call__(
        self,
        index: int,
        x: Tensor,
        residual: Tensor | None = None,
        low: float = -math.inf,
        high: float = math.inf,
        in_place: bool = False,
    ) -> Tensor | None:
        """See `taps.kernels.Normalisation`."""
        plan, own = self._plans[index], self._own
        if (
            plan.ready is not self._key
            or x.layout is not torch.strided
            or x.shape != plan.shape
            or x.stride() != plan.strides
            or x.dtype is not plan.dtype
            or type(x) is not Tensor
            or x.requires_grad
            or not x.is_cpu
            or (low, high) != plan.bounds
            or (own is not None and own.leaning is not self._leaning)
        ):
            return self._first(index, x, residual, low, high, in_place)
        observe = self._observe
        if observe and (self._direct[index] or self._staged[index] is not None):
            return None
        call = plan.call
        try:
            call.x = x.data_ptr()
            if residual is None:
                call.residual = None
            elif plan.like(residual):
                call.residual = residual.data_ptr()
            else:
                return None
        except RuntimeError:  # a tensor of a function transform, such as `vmap`
            return None
        y = x if in_place else torch.empty_like(x)
        call.y = y.data_ptr()
        far = self._call(plan.address)
        if far < 0:
            raise MemoryError("no memory for a layer's sums")
        if far:
            self._lean()
        if observe:
            self._direct[index], self._positions[index] = True, plan.positions
        return y

    def _first(
        self,
        index: int,
        x: Tensor,
        residual: Tensor | None,
        low: float,
        high: float,
        in_place: bool,
    ) -> Tensor | None:
        """As called, where the call has to be made out."""
        step, plan = self._step, self._plans[index]
        plan.ready = None
        if x.layout is not torch.strided:
            return None
        same = x.shape == plan.shape and x.dtype is plan.dtype and x.stride() == plan.strides
        if not (same or plan.fit(x)):
            return None
        if not plan.usable or type(x) is not Tensor or x.requires_grad or not x.is_cpu:
            return None
        items = plan.items
        if step.entries is None:
            step.entries = items
        elif items != step.entries:
            return None
        observe = step.observe
        if observe and step.seen(index):
            return None
        if not (residual is None or plan.like(residual)):
            return None
        call, own = plan.call, self._own
        try:
            call.x = x.data_ptr()
            call.residual = None if residual is None else residual.data_ptr()
        except RuntimeError:  # a tensor of a function transform, such as `vmap`
            return None
        y = x if in_place else torch.empty_like(x)
        call.y = y.data_ptr()
        call.low, call.high, call.threads = low, high, self._threads
        plan.measures = own is not None and own.measures(index, plan.positions)
        rows = step.rows_at(index, items)
        start = plan.start
        if observe or plan.measures:
            call.mean = self._moments_at() + start * 8
            call.var = call.mean + self._var
        else:
            call.mean = None
        call.row_stride = self._stride
        call.scale = self._place + start * BYTES
        call.shift = call.scale + self._shift
        call.rows = None
        if rows is not None and not self._alike:
            call.rows = self._rows or rows.data_ptr()
        call.distance = call.foreign = None
        if self._now or (own is not None and own.leaning is not self._leaning):
            self._by_frame(index, plan, rows)
        else:
            if own is not None:
                if not self._foreign_at:  # frames are counted only now
                    self._distances_at, self._foreign_at = self._tables.of_frames(items)
                call.row_precision = call.scale + 2 * self._shift
                call.row_mean = call.scale + 3 * self._shift
                call.source_mean = self._source + start * BYTES
                call.source_var = call.source_mean + self._shift
                call.foreign, call.begins = self._foreign_at, int(index == 0)
            if own is not None and plan.measures:
                call.distance, call.usual = self._distances_at, own.thresholds[index]
            plan.bounds, plan.ready = (low, high), self._key
            if self._run(plan.address):
                self._lean()
        if observe:
            step.wrote(index, plan.positions)
        return y

    def observe(self, index: int, x: Tensor) -> bool:
        """See `taps.kernels.Normalisation`."""
        step, plan = self._step, self._plans[index]
        if not self._fits(plan, x):
            return False
        if step.entries is None:
            step.entries = plan.items
        if plan.items != step.entries or step.seen(index):
            return False
        mean = self._moments_at() + plan.start * 8
        self._look(plan, x, mean, mean + self._var)
        step.wrote(index, plan.positions)
        return True

    def moments(self, index: int, x: Tensor) -> StagedMoments | None:
        """See `taps.kernels.Normalisation`."""
        plan = self._plans[index]
        if not self._fits(plan, x):
            return None
        call = plan.call
        with torch.inference_mode(False):
            found = torch.empty(2, plan.items, call.channels, dtype=torch.float64)
        stride, call.frame_stride = call.frame_stride, call.channels
        self._look(plan, x, found[0].data_ptr(), found[1].data_ptr())
        call.frame_stride = stride
        return StagedMoments(found[0].float(), found[1].rsqrt_().float())

    def _fits(self, plan: Plan, x: Tensor) -> bool:
        if x.layout is not torch.strided or type(x) is not Tensor:
            return False
        same = x.shape == plan.shape and x.dtype is plan.dtype and x.stride() == plan.strides
        if not (same or plan.fit(x)) or not x.is_cpu:
            return False
        # Tensors of a function transform, such as `vmap`, have no memory.
        return not torch._C._functorch.is_functorch_wrapped_tensor(x)

    def _look(self, plan: Plan, x: Tensor, mean: int, var: int) -> None:
        call, plan.ready = plan.call, None
        call.x, call.threads = x.data_ptr(), self._threads
        call.y = call.residual = call.rows = None
        call.mean, call.var, call.distance, call.foreign = mean, var, None, None
        self._run(plan.address)
        call.mean = None

    def _lean(self) -> None:
        """Some frame is far from its row: later layers are to know of it."""
        if self._leaning is None and self._own is not None:
            assert self._step.entries is not None
            self._leaning = self._tables.lean(self._step.entries)
            self._own.leaning = self._leaning

    def _by_frame(self, index: int, plan: Plan, rows: Tensor | None) -> None:
        """Moments first, for what they are normalised with depends on them."""
        call = plan.call
        if call.mean is not None:
            y, call.y = call.y, None
            self._run(plan.address)
            call.y = y
            if self._step.observe:
                self._step.wrote(index, plan.positions)
            if self._now and self._own is None and self._proposed(index, plan):
                return
        self._correct(index, plan, rows, measures=plan.measures)

    def _proposed(self, index: int, plan: Plan) -> bool:
        """Normalise with what a kernel proposes; False: there is none, and nothing was done."""
        assert isinstance(self._statistics, ProposedStatistics)
        writer = self._statistics.writer(plan.items)
        if writer is None:
            return False
        call, tables = plan.call, self._tables
        scale = tables.address(1) + plan.start * BYTES
        moments = call.mean, call.var, tables.padded
        writer.table(
            index, moments, (scale, scale + self._shift, self._stride), tables.affine(index)
        )
        call.mean = None
        call.scale, call.shift = scale, scale + self._shift
        self._run(plan.address)
        return True

    def _correct(self, index: int, plan: Plan, rows: Tensor | None, *, measures: bool) -> None:
        """Normalise frames by what their moments are."""
        call, items = plan.call, plan.items
        call.mean = None
        found = self._corrected(index, items, rows, measures=measures)
        if found is not None:
            each = torch.arange(items)
            call.rows = each.data_ptr()
        elif self._now:
            assert self._statistics is not None
            found = self._statistics.coefficients(index)
        if found is not None:
            scale, shift = self._composed(index, *found)
            call.scale, call.shift = scale.data_ptr(), shift.data_ptr()
            call.row_stride = scale.stride(0)
        self._run(plan.address)

    def _corrected(
        self, index: int, items: int, rows: Tensor | None, *, measures: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Scale and shift of single frames' inputs; None: no frame is corrected."""
        if self._own is None:
            return None
        staged = None
        if measures:
            mean, var = self._step.room[:, :, self._tables.layers[index].span]
            staged = StagedMoments(mean.float(), var.rsqrt().float())
        return self._own.coefficients(index, staged, items, rows)

    def _composed(self, index: int, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """What moves inputs, and then normalises them with what the layer holds."""
        held_scale, held_shift = self._tables.of_layer(0, self._tables.layers[index].span)
        return scale * held_scale, torch.addcmul(held_shift, shift, held_scale)
