"""How the input of a layer is cut up for a GPU: a function of its shape alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_PROGRAMS = 1024  # about eight for each of an H100's 132 multiprocessors
_MOST_STEPS = 16  # tiles that a program goes through at most: more would leave some waiting
_TILE = 2048  # values: sixteen for each of 128 threads, which have as many sums of two kinds
_LARGEST_BLOCK = 256  # channels of a tile, where they lie side by side


@dataclass(frozen=True)
class Shape:
    """Of a layer's input, and its pieces.

    Sums are taken over pieces of a frame's positions; no two programs add to the same place, so
    that they come out alike to the bit every time.

    Attributes:
        frames: leading dimension.
        channels: second dimension.
        positions: all others.
        channels_last: channels lie side by side in memory, not positions.
        element_bytes: 2 or 4.
    """

    frames: int
    channels: int
    positions: int
    channels_last: bool
    element_bytes: int

    @cached_property
    def block(self) -> tuple[int, int]:
        """Of a tile: positions and channels, or lines and positions, each a power of two."""
        inner = self.channels if self.channels_last else self.positions
        largest = _LARGEST_BLOCK if self.channels_last else _TILE
        wide = min(_power_of_two(inner), largest)
        return _TILE // wide, wide

    @cached_property
    def steps(self) -> int:
        """Tiles that a program goes through, one after the other."""
        outer, wide = self.block
        along = outer if self.channels_last else wide
        enough = -(-self.positions // along)
        share = self.frames * self.channels * self.positions // (outer * wide * _PROGRAMS)
        return max(1, min(enough, _MOST_STEPS, 1 << max(share, 1).bit_length() - 1))

    @cached_property
    def piece(self) -> int:
        """Positions that are summed up together; the last of a frame's pieces may have fewer."""
        return self.steps * (self.block[0] if self.channels_last else self.block[1])

    @cached_property
    def splits(self) -> int:
        """Pieces of a frame's positions."""
        return max(1, -(-self.positions // self.piece))

    @property
    def sums(self) -> int:
        """How many partial sums there are: `[splits, 2, frames, channels]`."""
        return self.splits * 2 * self.frames * self.channels


def shape_of(x: Tensor) -> Shape | None:
    """Of `[frames, channels, *spatial]`; None: in no order that there is a kernel for."""
    if x.dim() < 2:
        return None
    frames, channels, positions = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    last = _channels_last(x)
    # With a single position, channels lie side by side in both orders.
    if last is False and not x.is_contiguous():
        return None
    side_by_side = last or (positions == 1 and x.is_contiguous())
    if channels * positions >= 2**31:
        return None
    return Shape(frames, channels, positions, side_by_side, x.element_size())


def _channels_last(x: Tensor) -> bool:
    if x.is_contiguous():
        return False
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
