"""Normalisation, addition, activation and moments in one pass over memory, on the CPU.

A layer whose input is not to be kept is written over; what follows it, where `chains` found that it
may be taken along, is done in the same pass. On the same statistics the result is PyTorch's to the
bit (in fp32, where a processor with fused multiplication is at hand).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from streamadapt.bank import StatisticsBank
from streamadapt.layout import BankLayout
from streamadapt.ops.collect import StagedMoments
from streamadapt.ops.compiled import Kernels, LayerCall, TablesCall
from streamadapt.taps.inventory import PLAIN_TYPES, AdaptableLayer
from streamadapt.taps.statistics import RowStatistics
from streamadapt.taps.step import Step

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_POINTER = ctypes.sizeof(ctypes.c_void_p)


class FusedTables:
    """Statistics of rows as the scale and shift that layers normalise with.

    Args:
        layers: the adaptable layers.
        layout: the bank's.
        kernels: compiled.
    """

    def __init__(
        self, layers: Sequence[AdaptableLayer], layout: BankLayout, kernels: Kernels
    ) -> None:
        self.kernels = kernels
        self._modules = [layer.module for layer in layers]
        self.plain = [type(layer.module) in PLAIN_TYPES for layer in layers]
        self.starts = [one.start for one in layout.layers]
        self._padded = layout.padded_channels
        count = len(layers)
        # Kept alive as long as the calls that point into them.
        self._arrays = (
            np.array(self.starts, dtype=np.int64),
            np.array([one.channels for one in layout.layers], dtype=np.int64),
            np.array([one.eps for one in layers], dtype=np.float32),
        )
        self._weights = (ctypes.c_void_p * count)()
        self._biases = (ctypes.c_void_p * count)()
        starts, channels, eps = self._arrays
        self._call = TablesCall(
            weights=ctypes.addressof(self._weights),
            biases=ctypes.addressof(self._biases),
            starts=starts.ctypes.data,
            channels=channels.ctypes.data,
            eps=eps.ctypes.data,
            layers=count,
            rows=1,
            table_stride=self._padded,
        )
        self.calls = [
            LayerCall(channels=one.channels, eps=layer.eps, frame_stride=self._padded)
            for one, layer in zip(layout.layers, layers, strict=True)
        ]
        self.usable = [False] * count
        self._room = torch.zeros(0)

    def begin(self, rows: int) -> None:
        """Look at the layers' weights, and make room for so many rows."""
        if len(self._room) < rows:
            with torch.inference_mode(False):
                self._room = torch.zeros(rows, 2, self._padded)
        for index, module in enumerate(self._modules):
            parameters = module._parameters
            weight, bias = parameters.get("weight"), parameters.get("bias")
            usable = self.plain[index]
            for parameter, pointers in ((weight, self._weights), (bias, self._biases)):
                pointers[index] = None
                if parameter is not None:
                    pointers[index] = parameter.data_ptr()
                    usable = usable and parameter.dtype is torch.float32
                    usable = usable and parameter.is_contiguous()
            held = module._buffers["running_var"]
            self.usable[index] = usable and held is not None and held.dtype is torch.float32

    def fill(self, row: int, mean: Tensor, var: Tensor) -> None:
        """Make a row of some statistics, `[padded channels]` fp32, of the layers' weights too."""
        call = self._call
        call.mean, call.var = mean.data_ptr(), var.data_ptr()
        place = self._room.data_ptr() + row * self._room.stride(0) * 4
        call.scale, call.shift = place, place + self._padded * 4
        self.kernels.fill_tables(call)

    def pointers(self, row: int, index: int) -> tuple[int, int, int]:
        """Addresses of a layer's scale and shift from a row on, and elements between rows."""
        stride = self._room.stride(0)
        place = self._room.data_ptr() + (row * stride + self.starts[index]) * 4
        return place, place + self._padded * 4, stride

    def of_layer(self, row: int, span: slice) -> tuple[Tensor, Tensor]:
        """A layer's scale and shift, `[channels]` fp32."""
        scale, shift = self._room[row, :, span]
        return scale, shift


class FusedStep:
    """One step's normalisation.

    Args:
        step: that it belongs to.
        tables: of the model's layers.
        statistics: what the layers are normalised with; None: what they hold, row 0 of the tables.
        now: statistics depend on the frames themselves, layer by layer.
        first: row of the tables that the step's rows start with.
        alike: it is the same for all rows.
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
    ) -> None:
        self._step, self._tables = step, tables
        self._statistics, self._now, self._first = statistics, now, first
        self._alike = alike
        self._threads = torch.get_num_threads()
        self._distances: np.ndarray | None = None

    def __call__(
        self,
        index: int,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        in_place: bool = False,
    ) -> Tensor | None:
        """Normalise a layer's input, add to it, clamp it; and stage its moments.

        Args:
            index: of the layer.
            x: `[frames, channels, *spatial]`.
            residual: of `x`'s shape.
            low: least value of the result.
            high: largest value of the result.
            in_place: write the result over `x`.

        Returns:
            The result; None, and nothing done, where that is not possible.
        """
        step, tables = self._step, self._tables
        dtype = _DTYPES.get(x.dtype)
        if dtype is None or not tables.usable[index] or x.dim() < 3 or not x.numel():
            return None
        if type(x) is not Tensor or x.device.type != "cpu" or x.requires_grad:
            return None
        items = x.shape[0]
        if step.entries is None:
            step.entries = items
        if items != step.entries or (step.observe and step.seen(index)):
            return None
        channels_last = 0
        if not x.is_contiguous():
            if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
                return None
            channels_last = 1
        if residual is not None and not (
            residual.shape == x.shape
            and residual.dtype is x.dtype
            and residual.stride() == x.stride()
        ):
            return None
        call = tables.calls[index]
        positions = x.numel() // (items * call.channels)
        own = step.own
        measures = own is not None and own.measures(index, positions)
        y = x if in_place else torch.empty_like(x)
        call.x, call.y = x.data_ptr(), y.data_ptr()
        call.residual = None if residual is None else residual.data_ptr()
        call.frames, call.positions = items, positions
        call.low, call.high = low, high
        call.dtype, call.channels_last, call.threads = dtype, channels_last, self._threads
        call.chosen = call.distance = call.mean = None
        call.backwards = 0
        rows = step.rows_at(index, items)
        if step.observe or measures:
            place = step.room.data_ptr() + tables.starts[index] * 8
            call.mean, call.var = place, place + step.room.stride(0) * 8
        if self._now or (own is not None and (own.leans or measures)):
            self._by_frame(index, call, items, positions, rows, measures=measures)
        else:
            call.scale, call.shift, call.row_stride = tables.pointers(self._first, index)
            call.rows = None if rows is None or self._alike else rows.data_ptr()
            tables.kernels.run_layer(call)
        if step.observe:
            step.wrote(index, positions)
        return y

    def _by_frame(
        self,
        index: int,
        call: LayerCall,
        items: int,
        positions: int,
        rows: Tensor | None,
        *,
        measures: bool,
    ) -> None:
        """Moments first, for what they are normalised with depends on them."""
        step, tables = self._step, self._tables
        run, own = tables.kernels.run_layer, step.own
        if not self._now:
            call.scale, call.shift, call.row_stride = tables.pointers(self._first, index)
            call.rows = None if rows is None else rows.data_ptr()
        measured = None if own is None or not measures else own.measure(index)
        if measured is not None and not self._now:
            usual, mean, precision = measured
            distances = self._room_for(items)
            call.usual, call.measure_stride = usual, mean.stride(0)
            call.row_mean, call.row_precision = mean.data_ptr(), precision.data_ptr()
            call.distance = distances.ctypes.data
            far = run(call)
            call.mean = call.distance = None
            if not far:
                return
            # PyTorch decides on them; whom it does not correct either is normalised as usual.
            chosen = (distances > usual).astype(np.uint8)
            call.chosen = chosen.ctypes.data
        elif call.mean is not None:
            y, call.y = call.y, None
            run(call)
            call.y, call.mean = y, None
            if step.observe:
                step.wrote(index, positions)
        found = self._own(index, items, rows, measures=measures)
        if found is not None:
            each = torch.arange(items)
            call.rows = each.data_ptr()
        elif self._now:
            assert self._statistics is not None
            found = self._statistics.coefficients(index)
            call.rows = None if rows is None else rows.data_ptr()
        if found is not None:
            scale, shift = self._composed(index, *found)
            call.scale, call.shift = scale.data_ptr(), shift.data_ptr()
            call.row_stride = scale.stride(0)
        call.backwards = 1  # the last frame is still in the cache
        run(call)

    def _own(
        self, index: int, items: int, rows: Tensor | None, *, measures: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Scale and shift of single frames' inputs; None: no frame is corrected."""
        step = self._step
        if step.own is None:
            return None
        staged = None
        if measures:
            mean, var = step.room[:, :, step.layout.layers[index].span]
            staged = StagedMoments(mean.float(), var.rsqrt().float())
        return step.own.coefficients(index, staged, items, rows)

    def _composed(self, index: int, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """What moves inputs, and then normalises them with what the layer holds."""
        held_scale, held_shift = self._tables.of_layer(0, self._step.layout.layers[index].span)
        return scale * held_scale, torch.addcmul(held_shift, shift, held_scale)

    def _room_for(self, items: int) -> np.ndarray:
        if self._distances is None or len(self._distances) < items:
            self._distances = np.empty(items, dtype=np.float64)
        return self._distances[:items]


def arm(
    step: Step,
    tables: FusedTables,
    bank: StatisticsBank,
    rows: Sequence[int],
    *,
    statistics: RowStatistics | None,
    bound: bool,
    now: bool,
    source: bool,
) -> None:
    """Let a step normalise with compiled kernels.

    Args:
        step: of a forward that is about to run.
        tables: of the model's layers.
        bank: where the statistics are.
        rows: of the step.
        statistics: as far as inputs are moved, or single frames corrected.
        bound: the layers hold the row's statistics, not the source's.
        now: see `FusedStep`.
        source: normalise as the source.
    """
    tables.begin(1 + len(rows))
    deployed = bank.source[0], bank.source[1]
    tables.fill(0, *(bank.data[rows[0], :2] if bound else deployed))
    first = 0
    if source and bound:
        tables.fill(1, *deployed)
        first = 1
    elif not (bound or source or now):
        for place, row in enumerate(rows):
            tables.fill(1 + place, *bank.data[row, :2])
        first = 1
    step.fused = FusedStep(step, tables, statistics=statistics, now=now, first=first, alike=source)
