"""What the kernels of a commit are called with: where channels lie, and room to work in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streamadapt.layout import BankLayout

CHUNK = 128
"""Channels that one program of a kernel sees, at most; of one layer."""

MOST_FRAMES = 128
"""Frames of a step: the distances of all pairs of them are compared at once."""

SCALARS = (
    "phase",
    "settled_frames",
    "settled_seconds",
    "pending_frames",
    "pending_seconds",
    "blocks",
    "excess",
    "nearer",
    "recent",
    "insists",
    "rests",
    "level",
    "material",
)
"""What `Restarting` remembers, in the order of a row's tallies."""

RESTARTING = (
    "block_frames",
    "block_seconds",
    "alarm",
    "clip",
    "max_weight",
    "level",
    "unlike",
    "watched",
)
"""Its parameters as the kernels read them; `watched` is a number of layers."""

BLENDING = ("value", "prior_frames", "max_frames")
"""Those of `EMA` (of its memory: `value`) and `Welford`."""

MEMORY = ("momentum", "half_life_frames", "half_life_seconds", "counted")
"""What the weight of a batch follows from."""

_KEPT, _PARTS = 16, 7  # `KEPT` and `PARTS` of the kernels


@dataclass(frozen=True, eq=False)
class Places:
    """Where layers lie.

    Attributes:
        chunks: `[4, chunks]` int64: first channel, how many channels, how many with padding, layer.
        layers: `[3, layers]` float64: eps, number of channels, seconds of memory.
    """

    chunks: Tensor
    layers: Tensor

    @classmethod
    def of(cls, layout: BankLayout, memory: Tensor, *, device: torch.device) -> Places:
        """Of a bank.

        Args:
            layout: the bank's.
            memory: `[layers]`, seconds.
            device: where to.
        """
        ends = [one.start for one in layout.layers[1:]] + [layout.padded_channels]
        chunks = [
            (first, max(min(CHUNK, one.stop - first), 0), min(CHUNK, end - first), index)
            for index, (one, end) in enumerate(zip(layout.layers, ends, strict=True))
            for first in range(one.start, end, CHUNK)
        ]
        with torch.inference_mode(False):
            values = [[one.eps for one in layout.layers], [one.channels for one in layout.layers]]
            layers = torch.cat([torch.tensor(values, dtype=torch.float64), memory[None].cpu()])
            return cls(torch.tensor(chunks).T.contiguous().to(device), layers.to(device))


@dataclass(frozen=True, eq=False)
class Room:
    """What one commit leaves for the next launch of the same; nothing in it outlives the commit.

    Attributes:
        parts: `[2, frames, chunks]` float64.
        order: `[rows, frames]` int64.
        shares: `[rows, frames + 2]` float64.
        row_parts: `[rows, 7, chunks]` float64.
        before: `[rows, 16]` float64.
        candidate: `[rows, 4, channels]` fp32.
    """

    parts: Tensor
    order: Tensor
    shares: Tensor
    row_parts: Tensor
    before: Tensor
    candidate: Tensor

    @classmethod
    def of(cls, places: Places, *, rows: int, frames: int, channels: int) -> Room:
        """For so many rows and frames."""
        device, chunks = places.chunks.device, places.chunks.shape[1]
        with torch.inference_mode(False):
            wide = torch.empty(0, dtype=torch.float64, device=device)
            return cls(
                wide.new_empty(2, frames, chunks),
                torch.empty(rows, frames, dtype=torch.long, device=device),
                wide.new_empty(rows, frames + 2),
                wide.new_empty(rows, _PARTS, chunks),
                wide.new_empty(rows, _KEPT),
                torch.empty(rows, 4, channels, device=device),
            )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a commit tells.

    Attributes:
        pooled: `[2, rows, channels]` float64: mean and variance of each row's accepted frames.
        results: `[3, rows]` float64: accepted frames, verdict, phase.
        trust: `[frames]` float64.
    """

    pooled: Tensor
    results: Tensor
    trust: Tensor

    @classmethod
    def of(cls, places: Places, *, rows: int, frames: int, channels: int) -> Outcome:
        """For so many rows and frames."""
        with torch.inference_mode(False):
            wide = torch.empty(0, dtype=torch.float64, device=places.chunks.device)
            return cls(
                wide.new_empty(2, rows, channels),
                wide.new_empty(3, rows),
                wide.new_empty(frames),
            )
