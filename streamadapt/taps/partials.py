"""Where the partial sums of all layers lie between a forward and its commit, on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamadapt.layout import ALIGNMENT_CHANNELS, BankLayout
from streamadapt.ops.apply import Shape
from streamadapt.transfer import upload

_KEPT = 8  # plans, of batches of other sizes


@dataclass(frozen=True, eq=False)
class Plan:
    """The places for steps whose layers have certain inputs.

    Attributes:
        shapes: of each layer's input; None: it has no place here.
        sums: fp32, all of them.
        offsets: where each layer's begin.
        layers: `[5, layers]` int64 on the device, see `ops.finalise`.
    """

    shapes: tuple[Shape | None, ...]
    sums: Tensor
    offsets: tuple[int, ...]
    layers: Tensor

    def of(self, index: int, shape: Shape) -> Tensor | None:
        """A layer's sums; None where its input has another shape than planned."""
        if self.shapes[index] != shape:
            return None
        start = self.offsets[index]
        return self.sums[start : start + shape.sums]


class Partials:
    """Plans, each made of what a step with so many frames showed before.

    Args:
        layout: of the bank.
    """

    def __init__(self, layout: BankLayout) -> None:
        self._layout = layout
        self._plans: dict[int, Plan] = {}
        self._layer_of_block: Tensor | None = None

    def plan(self, entries: int) -> Plan | None:
        """For so many frames; None: nothing is known of such steps yet."""
        return self._plans.get(entries)

    def learn(self, entries: int, shapes: Sequence[Shape | None], device: torch.device) -> None:
        """Be ready for steps like the one that showed these shapes."""
        columns, at = [], 0
        for layer, shape in zip(self._layout.layers, shapes, strict=True):
            splits, positions = (0, 0) if shape is None else (shape.splits, shape.positions)
            columns.append((at, splits, positions, layer.start, layer.channels))
            at += 0 if shape is None else -(-shape.sums // ALIGNMENT_CHANNELS) * ALIGNMENT_CHANNELS
        rows = [list(one) for one in zip(*columns, strict=True)]
        with torch.inference_mode(False):
            sums = torch.zeros(at, device=device)
            layers = upload(torch.tensor(rows, dtype=torch.int64), device)
        self._plans.pop(entries, None)
        while len(self._plans) >= _KEPT:
            self._plans.pop(next(iter(self._plans)))
        offsets = tuple(column[0] for column in columns)
        self._plans[entries] = Plan(tuple(shapes), sums, offsets, layers)

    def layer_of_block(self, device: torch.device) -> Tensor:
        """The layer of each block of channels, `[blocks]` int64."""
        found = self._layer_of_block
        if found is None or found.device != device:
            starts = [layer.start for layer in self._layout.layers]
            ends = [*starts[1:], self._layout.padded_channels]
            blocks = [
                index
                for index, (start, end) in enumerate(zip(starts, ends, strict=True))
                for _ in range(start, end, ALIGNMENT_CHANNELS)
            ]
            with torch.inference_mode(False):
                found = upload(torch.tensor(blocks, dtype=torch.int64), device)
            self._layer_of_block = found
        return found
