"""Statistics as the compiled kernels want them, and how each layer's kernel is called."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt.bank import Rows, StatisticsBank
from streamadapt.layout import BankLayout
from streamadapt.ops.compiled import Kernels, LayerCall, TablesCall
from streamadapt.taps.fused import BYTES, FusedStep
from streamadapt.taps.inventory import PLAIN_TYPES, AdaptableLayer
from streamadapt.taps.statistics import RowStatistics
from streamadapt.taps.step import Step
from streamadapt.transfer import is_capturing

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Plan:
    """How one layer is called; what stays from step to step is not looked at again.

    Attributes:
        call: of the kernel.
        address: of the call.
        start: of the layer's channels in the bank.
        usable: the layer is PyTorch's own, and its weights are fp32.
        shape: of the input that the call is made out for.
        strides: of it.
        dtype: of it.
        items: its frames.
        positions: of a frame.
        measures: frames are judged by their moments.
        bounds: that results are clamped to.
        ready: the key of steps whose calls differ in their inputs alone; None: of none.
    """

    __slots__ = (
        "address",
        "bounds",
        "call",
        "dtype",
        "items",
        "measures",
        "positions",
        "ready",
        "shape",
        "start",
        "strides",
        "usable",
    )

    def __init__(self, call: LayerCall, start: int) -> None:
        self.call, self.start = call, start
        self.address = ctypes.addressof(call)
        self.usable = False
        self.shape: torch.Size | None = None
        self.strides: tuple[int, ...] = ()
        self.dtype: torch.dtype | None = None
        self.items = self.positions = 0
        self.measures = False
        self.bounds = (-math.inf, math.inf)
        self.ready: object = None

    def like(self, other: Tensor) -> bool:
        """Whether a tensor is of the kind that the call is made out for."""
        same = other.shape == self.shape and other.stride() == self.strides
        return same and other.dtype is self.dtype

    def fit(self, x: Tensor) -> bool:
        """Make the call out for another input; whether there is a kernel for it."""
        self.shape = self.ready = None
        dtype, call = _DTYPES.get(x.dtype), self.call
        if dtype is None or x.dim() < 3 or not x.numel() or not x.is_cpu:
            return False
        channels_last = not x.is_contiguous()
        if channels_last and not (
            x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        ):
            return False
        self.items, self.positions = x.shape[0], math.prod(x.shape[2:])
        call.frames, call.positions = self.items, self.positions
        call.dtype, call.channels_last = dtype, int(channels_last)
        self.shape, self.strides, self.dtype = x.shape, x.stride(), x.dtype
        return True


class FusedTables:
    """Statistics of rows as the scale and shift that layers normalise with.

    Args:
        layers: the adaptable layers.
        layout: the bank's.
        kernels: compiled.
        measured: how many layers, from the first one on, may judge single frames.

    Attributes:
        plain: which layers are PyTorch's own.
    """

    def __init__(
        self,
        layers: Sequence[AdaptableLayer],
        layout: BankLayout,
        kernels: Kernels,
        *,
        measured: int,
    ) -> None:
        self.kernels, self.measured = kernels, measured
        self.layers = layout.layers
        self._modules = [layer.module for layer in layers]
        self.plain = [
            type(layer.module) in PLAIN_TYPES and "forward" not in layer.module.__dict__
            for layer in layers
        ]
        self._folded = [layer.kind == "folded" for layer in layers]
        self.padded = layout.padded_channels
        count = len(layers)
        # Kept alive as long as the calls that point into them.
        self._arrays = (
            np.array([one.start for one in layout.layers], dtype=np.int64),
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
            measured=measured,
            rows=1,
        )
        self.plans = [
            Plan(
                LayerCall(
                    channels=one.channels,
                    eps=layer.eps,
                    frame_stride=self.padded,
                    backwards=1,  # the last frame is still in the cache
                ),
                one.start,
            )
            for one, layer in zip(layout.layers, layers, strict=True)
        ]
        # Of all layers one after the other, to be compared at once: in each step.
        self._looked = False
        self._where: tuple[list[dict[str, Any]], list[str]] = ([], [])
        self._known: list[Tensor | None] = []
        self._there: list[Tensor] = []
        self._addresses: list[int] = []
        self._room = torch.zeros(0, 4, self.padded)
        self._filled: list[tuple[int, Tensor]] = []
        # Of frames, written over in every step: how far each is, and how much it is corrected.
        self._frames = torch.empty(2, 0, dtype=torch.float64)
        self._rows = torch.empty(0, dtype=torch.long)
        self._key: tuple[Any, ...] | None = None

    def begin(self, rows: int) -> None:
        """Look at the layers' weights, and make room for so many rows."""
        if len(self._room) < rows:
            with torch.inference_mode(False):
                self._room = torch.zeros(rows, 4, self.padded)
        if self._unchanged():
            return
        held: list[tuple[dict[str, Any], str, Tensor | None]] = []
        for index, module in enumerate(self._modules):
            if self._folded[index]:
                continue  # its weight is a convolution's
            parameters = module._parameters
            weight, bias = parameters.get("weight"), parameters.get("bias")
            self._weights[index] = None if weight is None else weight.data_ptr() or None
            self._biases[index] = None if bias is None else bias.data_ptr() or None
            # A weight that is not where it belongs is made anew by a hook, as in pruning.
            whole = "weight" in parameters and "bias" in parameters
            self.plans[index].ready = None
            self.plans[index].usable = (
                self.plain[index]
                and whole
                and all(
                    one is None or (one.dtype is torch.float32 and one.is_contiguous())
                    for one in (weight, bias, *(module._buffers.values()))
                    if one is None or one.is_floating_point()
                )
            )
            held += [(parameters, "weight", weight), (parameters, "bias", bias)]
        self._where = [one[0] for one in held], [one[1] for one in held]
        self._known = [one[2] for one in held]
        self._there = [one for one in self._known if one is not None]
        self._addresses = [one.data_ptr() for one in self._there]
        self._looked = True

    def _unchanged(self) -> bool:
        """Whether all weights are the tensors, and lie in the memory, that they were."""
        return (
            self._looked
            and all(map(is_, map(dict.get, *self._where), self._known))
            and list(map(Tensor.data_ptr, self._there)) == self._addresses
        )

    @property
    def name(self) -> str:
        """How layers are normalised."""
        return f"compiled ({self.kernels.instruction_set})"

    def refresh(self, device: torch.device) -> None:
        """Look at everything in the next step."""
        self._looked = False

    def serves(self, device: torch.device) -> bool:
        """Whether there are kernels for models on a device."""
        return device.type == "cpu" and not is_capturing()

    def arm(
        self,
        step: Step,
        bank: StatisticsBank,
        rows: Rows,
        *,
        statistics: RowStatistics | None,
        bound: bool,
        now: bool,
        source: bool,
    ) -> FusedStep:
        """What normalises in a forward that is about to run; see `taps.kernels.Tables`."""
        self.begin(1 + len(rows))
        self._filled.clear()
        self.fill(0, bank.data[rows[0]] if bound else bank.source)
        first = 0
        if source and bound:
            self.fill(1, bank.source)
            first = 1
        elif not (bound or source or now):
            for place, row in enumerate(rows):
                self.fill(1 + place, bank.data[row])
            first = 1
        return FusedStep(
            step,
            self,
            statistics=statistics,
            now=now,
            first=first,
            alike=source,
            source=bank.source.data_ptr(),
        )

    def key(self, calls: tuple[Any, ...] | None) -> object:
        """The same object as the last time, where calls depend on the same; else another one."""
        if calls is None or calls != self._key:
            self._key = calls
        return object() if self._key is None else self._key

    def fill(self, row: int, statistics: Tensor) -> None:
        """Make a row of some statistics, `[2, padded channels]` fp32."""
        call, place = self._call, self.address(row)
        self._filled.append((row, statistics))
        mean = statistics.data_ptr()
        call.mean, call.var = mean, mean + statistics.stride(0) * BYTES
        call.scale, call.shift = place, place + self.padded * BYTES
        call.precision = place + 2 * self.padded * BYTES
        call.centre = place + 3 * self.padded * BYTES
        self.kernels.fill_tables(call)

    def of_frames(self, items: int) -> tuple[int, int]:
        """Addresses of room for two values of each frame; the same in every step like it.

        They are how far each is from its row, and how much later layers correct it: 0.
        """
        if self._frames.shape[1] < items:
            with torch.inference_mode(False):
                self._frames = torch.empty(2, items, dtype=torch.float64)
        self._frames[1].zero_()
        return self._frames[0].data_ptr(), self._frames[1].data_ptr()

    def rows_of(self, rows: Tensor) -> int:
        """Address of a copy of the frames' rows; the same in every step like it."""
        if len(self._rows) < len(rows):
            with torch.inference_mode(False):
                self._rows = torch.empty(len(rows), dtype=torch.long)
        self._rows[: len(rows)] = rows
        return self._rows.data_ptr()

    def lean(self, items: int) -> Tensor:
        """Make layers ready that correct frames without measuring them; how much, `[items, 1]`."""
        call, filled = self._call, self._filled.copy()
        call.measured = len(self.layers)
        for row, statistics in filled:
            self.fill(row, statistics)
        call.measured = self.measured
        return self._frames[1, :items].unsqueeze(1)

    def address(self, row: int) -> int:
        """Of a row: scale, shift, `1 / (variance + eps)`, mean, `[4, padded channels]` fp32."""
        return self._room.data_ptr() + row * 4 * self.padded * BYTES

    def affine(self, index: int) -> tuple[int | None, int | None]:
        """Addresses of a layer's weight and bias; None: it has none."""
        return self._weights[index], self._biases[index]

    def of_layer(self, row: int, span: slice) -> tuple[Tensor, Tensor]:
        """A layer's scale and shift, `[channels]` fp32."""
        return self._room[row, 0, span], self._room[row, 1, span]
