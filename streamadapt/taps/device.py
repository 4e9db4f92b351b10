"""Normalisation, addition, activation and partial sums in one pass over memory, on a GPU.

The same operations exist for the CPU, where they are plain PyTorch and slow: tests run there.
Nothing here asks the host about a value, so that all of it can be captured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from streamadapt.bank import Rows, StatisticsBank
from streamadapt.layout import BankLayout
from streamadapt.ops.apply import Shape, shape_of
from streamadapt.ops.device import DeviceOperations
from streamadapt.ops.tables import CENTRE, SCALE, SHIFT
from streamadapt.taps.inventory import PLAIN_TYPES, AdaptableLayer
from streamadapt.taps.statistics import RowStatistics
from streamadapt.taps.step import Step
from streamadapt.transfer import is_capturing, upload

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_UNKNOWN = (None, None, -1, -1)
_calls = itertools.count(1)


class DeviceTables:
    """Statistics of rows as the scale and shift that layers normalise with; see `kernels.Tables`.

    Args:
        layers: the adaptable layers.
        layout: the bank's.
        operations: that normalise.

    Attributes:
        plain: which layers are PyTorch's own.
        usable: of those, which have weights where they belong.
    """

    def __init__(
        self,
        layers: Sequence[AdaptableLayer],
        layout: BankLayout,
        operations: DeviceOperations,
    ) -> None:
        self.layers, self._layout = layout.layers, layout
        self.operations = operations
        self._modules = [layer.module for layer in layers]
        self.plain = [
            type(layer.module) in PLAIN_TYPES and "forward" not in layer.module.__dict__
            for layer in layers
        ]
        self.usable = list(self.plain)
        self._known: list[tuple[Any, ...]] = [_UNKNOWN] * len(layers)
        self._affine: Tensor | None = None  # `[2, padded channels]`: weights and biases
        self._eps: Tensor | None = None
        self._places: dict[tuple[int, ...], Tensor] = {}

    @property
    def name(self) -> str:
        """How layers are normalised."""
        return self.operations.name

    def serves(self, device: torch.device) -> bool:
        """Whether there are kernels for models on a device."""
        return device.type == self.operations.device_type

    def refresh(self, device: torch.device) -> None:
        """Look at the layers' weights, which may have been changed since the last step."""
        affine = self._affine
        if affine is None or affine.device != device:
            with torch.inference_mode(False):
                affine = torch.zeros(2, self._layout.padded_channels, device=device)
                affine[0] = 1.0
                self._affine, self._eps = affine, self._layout.eps.float()
            self._known = [_UNKNOWN] * len(self.layers)
        for index, module in enumerate(self._modules):
            parameters = module._parameters
            weight, bias = parameters.get("weight"), parameters.get("bias")
            versions = _version(weight), _version(bias)
            known = self._known[index]
            if known[0] is weight and known[1] is bias and known[2:] == versions:
                continue
            self._known[index] = weight, bias, *versions
            # A weight that is not where it belongs is made anew by a hook, as in pruning.
            whole = "weight" in parameters and "bias" in parameters
            self.usable[index] = self.plain[index] and whole
            with torch.inference_mode(False), torch.no_grad():
                for place, one, otherwise in ((0, weight, 1.0), (1, bias, 0.0)):
                    span = affine[place, self.layers[index].span]
                    if one is None:
                        span.fill_(otherwise)
                    else:
                        span.copy_(one.detach())

    def fill(self, bank: StatisticsBank, rows: Rows) -> Tensor:
        """Tables of the source and of rows, `[1 + rows, 4, padded channels]` fp32."""
        assert self._affine is not None and self._eps is not None
        if not isinstance(rows, Tensor):
            rows = self._on_device(tuple(rows), bank.device)
        with torch.inference_mode(False), torch.no_grad():
            shape = (1 + len(rows), 4, self._layout.padded_channels)
            table = torch.empty(shape, device=bank.device)
            self.operations.fill_tables_(
                bank.data, bank.source, rows, self._affine, self._eps, table
            )
        return table

    def _on_device(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        """Rows as the kernels want them; the usual single one is not sent again and again."""
        found = self._places.get(rows)
        if found is None or found.device != device:
            with torch.inference_mode(False):
                found = upload(torch.tensor(rows, dtype=torch.int64), device)
            if len(rows) == 1:
                self._places = {rows: found}
        return found

    def of(self, mean: Tensor, var: Tensor, span: slice) -> Tensor:
        """A table of other statistics of a layer, `[rows, 4, channels]`, from float64 ones."""
        assert self._affine is not None and self._eps is not None
        weight, bias = self._affine[:, span].double()
        precision = 1.0 / (var + self._layout.eps[span])
        scale = weight * precision.sqrt()
        return torch.stack([scale, bias - mean * scale, precision, mean], dim=1).float()

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
    ) -> DeviceStep:
        """What normalises in a forward that is about to run; see `kernels.Tables`."""
        if not is_capturing():
            self.refresh(bank.device)
        table = self.fill(bank, rows)
        return DeviceStep(step, self, table, statistics if now else None, source=source)


class DeviceStep:
    """One step's normalisation; see `kernels.Normalisation`.

    Args:
        step: that it belongs to.
        tables: of the model's layers.
        table: `[1 + rows, 4, padded channels]` fp32, of the source and of the step's rows.
        proposed: statistics that depend on the frames themselves, layer by layer; None: the rows'.
        source: normalise as the source.
    """

    def __init__(
        self,
        step: Step,
        tables: DeviceTables,
        table: Tensor,
        proposed: RowStatistics | None,
        *,
        source: bool,
    ) -> None:
        self._step, self._tables, self._proposed = step, tables, proposed
        self._source, self._alike = table[0], source
        self._table = table[:1] if source else table[1:]
        self._own, self._do = step.own, tables.operations
        self._sums: dict[int, tuple[Tensor, Shape]] = {}
        self._planned: set[int] = set()
        self._later: Tensor | None = None  # tables of the frames, in layers that do not look
        self._each: Tensor | None = None  # the number of each frame

    def __call__(
        self,
        index: int,
        x: Tensor,
        residual: Tensor | None = None,
        low: float = -math.inf,
        high: float = math.inf,
        in_place: bool = False,
    ) -> Tensor | None:
        """See `kernels.Normalisation`."""
        step, tables = self._step, self._tables
        shape = self._shape(index, x, residual)
        if shape is None or (step.entries or shape.frames) != shape.frames:
            return None
        if step.observe and step.seen(index):
            return None
        step.entries = shape.frames
        own, span = self._own, tables.layers[index].span
        rows = None if self._alike else step.rows_at(index, shape.frames)
        table = self._table[:, :, span]
        measures = own is not None and own.measures(index, shape.positions)
        with torch.inference_mode(False), torch.no_grad():
            sums = self._room(index, shape, x.device) if step.observe or measures else None
            if sums is not None and (measures or self._proposed is not None):
                # What the layer does hangs on its own moments: they have a pass of their own.
                self._do.collect_partials(x, table[:, CENTRE], rows, sums)
                moments = self._moments(index, sums, table, rows, shape)
                sums = None
                if step.observe:
                    step.wrote(index, shape.positions)
                if self._proposed is not None:
                    wanted = self._proposed.wanted(index, span)
                    table = tables.of(wanted.mean, wanted.var, span)
                if own is not None and measures:
                    table, rows = self._owned(index, moments, table, rows)
            if own is not None and not measures and own.leaning is not None:
                table, rows = self._leant(span, table, rows, own.leaning[:, 0])
        centre = table[:, 2 if table.shape[1] == 3 else CENTRE]
        given = (table[:, SCALE], table[:, SHIFT], centre, rows, residual, low, high, sums)
        if in_place:
            self._do.apply_collect_(x, *given)
            y = x
        else:
            y = self._do.apply_collect(x, *given)
        if sums is not None:
            step.wrote(index, shape.positions)
        return y

    def observe(self, index: int, x: Tensor) -> bool:
        """False: PyTorch's kernels take them."""
        return False

    def moments(self, index: int, x: Tensor) -> None:
        """None: PyTorch's kernels take them."""

    def finish(self) -> None:
        """Make moments of all layers' sums, and be ready for more steps like this one."""
        step = self._step
        if not (step.observe and self._sums):
            return
        assert step.entries is not None
        with torch.inference_mode(False), torch.no_grad():
            partials, entries = step.partials, step.entries
            rows = None if self._alike else step.rows_at(0, entries)
            mean, var = step.room
            plan = partials.plan(entries)
            if self._planned and plan is not None:
                blocks = partials.layer_of_block(mean.device)
                centre = self._table[:, CENTRE]
                self._do.finalise_(plan.sums, plan.layers, blocks, centre, rows, mean, var)
            for index, (sums, shape) in self._sums.items():
                if index not in self._planned:
                    table = self._table[:, :, self._tables.layers[index].span]
                    self._moments(index, sums, table, rows, shape)
            if len(self._planned) < len(self._sums) and not is_capturing():
                shapes = [self._sums.get(k, (None, None))[1] for k in range(len(step.positions))]
                partials.learn(entries, shapes, mean.device)

    def _shape(self, index: int, x: Tensor, residual: Tensor | None) -> Shape | None:
        """Of a layer's input; None where there is no kernel for it."""
        if not self._tables.usable[index] or type(x) is not Tensor or x.requires_grad:
            return None
        if x.dim() < 3 or x.dtype not in _DTYPES or not x.numel() or x.layout != torch.strided:
            return None
        if residual is not None and not (
            residual.shape == x.shape
            and residual.dtype is x.dtype
            and residual.stride() == x.stride()
        ):
            return None
        return shape_of(x)

    def _room(self, index: int, shape: Shape, device: torch.device) -> Tensor:
        """Where a layer's sums go."""
        plan = self._step.partials.plan(shape.frames)
        sums = None if plan is None else plan.of(index, shape)
        if sums is not None:
            self._planned.add(index)
        else:
            sums = torch.empty(shape.sums, device=device)
        self._sums[index] = sums, shape
        return sums

    def _moments(
        self, index: int, sums: Tensor, table: Tensor, rows: Tensor | None, shape: Shape
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of a layer's frames, where those of all layers are."""
        mean, var = self._step.room[:, :, self._tables.layers[index].span]
        self._do.finalise_layer_(
            sums, table[:, CENTRE], rows, shape.splits, shape.positions, mean, var
        )
        return mean, var

    def _owned(
        self, index: int, moments: tuple[Tensor, Tensor], table: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tables of single frames, which lean to their own statistics, and their numbers."""
        own = self._own
        assert own is not None
        mean, var = moments
        foreign, first = own.leaning, index == 0
        if foreign is None or len(foreign) != len(mean):
            foreign, first = mean.new_zeros(len(mean), 1), True
        out = table.new_empty(len(mean), 3, mean.shape[1])
        eps, usual = self._tables.layers[index].eps, own.thresholds[index]
        self._do.correct_own_(mean, var, table, rows, eps, usual, first, foreign[:, 0], out)
        own.leaning, self._later = foreign, None
        return out, self._numbers(len(mean), mean.device)

    def _leant(
        self, span: slice, table: Tensor, rows: Tensor | None, foreign: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tables of single frames, which lean to the source as far as was found before."""
        each = self._numbers(len(foreign), foreign.device)
        if self._proposed is not None:
            out = table.new_empty(len(foreign), 3, table.shape[2])
            self._do.correct_later_(foreign, table.contiguous(), self._source[:, span], rows, out)
            return out, each
        if self._later is None:  # all layers' at once
            self._later = table.new_empty(len(foreign), 3, self._table.shape[2])
            self._do.correct_later_(foreign, self._table, self._source, rows, self._later)
        return self._later[:, :, span], each

    def _numbers(self, frames: int, device: torch.device) -> Tensor:
        if self._each is None:
            self._each = torch.arange(frames, device=device)
        return self._each


def _version(parameter: Tensor | None) -> int:
    """Changes when a tensor is written to; always, where PyTorch does not keep count."""
    if parameter is None:
        return 0
    return next(_calls) if parameter.is_inference() else parameter._version
