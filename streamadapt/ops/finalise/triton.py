"""`finalise` on a GPU: a program a frame and block of channels, which lie in one layer."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 32  # channels: layers begin at multiples of it in the bank
_ROUND = 32  # splits that are read at once


@triton.jit
def _moments(sums, frame, frames, c, channels, inside, splits, positions, ROUND: tl.constexpr):
    """Offset of the mean from the centre, and variance, in float64."""
    first = c * 0.0
    second = c * 0.0
    first = first.to(tl.float64)
    second = second.to(tl.float64)
    field = (frame * 0 + frames) * channels
    for begin in range(0, splits, ROUND):
        s = begin + tl.arange(0, ROUND).to(tl.int64)
        mask = (s < splits)[:, None] & inside[None, :]
        at = (s[:, None] * 2 * frames + frame) * channels + c[None, :]
        first += tl.sum(tl.load(sums + at, mask=mask, other=0.0).to(tl.float64), axis=0)
        second += tl.sum(tl.load(sums + at + field, mask=mask, other=0.0).to(tl.float64), axis=0)
    offset = first / positions
    var = second / positions - offset * offset
    return offset, tl.where(var < 0.0, 0.0, var)  # not `maximum`: what is no number stays so


@triton.jit
def _all_layers(
    sums,
    layers,
    layer_of_block,
    centre,
    rows,
    mean,
    var,
    count,
    frames,
    centre_stride,
    mean_stride,
    var_stride,
    HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUND: tl.constexpr,
):
    block = tl.program_id(0)
    frame = tl.program_id(1).to(tl.int64)
    layer = layers + tl.load(layer_of_block + block)
    offset = tl.load(layer)
    splits = tl.load(layer + count)
    positions = tl.load(layer + 2 * count)
    start = tl.load(layer + 3 * count)
    channels = tl.load(layer + 4 * count)
    place = block * BLOCK + tl.arange(0, BLOCK)
    c = place - start
    inside = (c < channels) & (positions > 0)
    row = frame * 0
    if HAS_ROWS:
        row = tl.load(rows + frame)
    m = tl.load(centre + row * centre_stride + place, mask=inside, other=0.0)
    apart, spread = _moments(
        sums + offset, frame, frames, c, channels, inside, splits, positions, ROUND
    )
    tl.store(mean + frame * mean_stride + place, tl.where(inside, m + apart, 0.0))
    tl.store(var + frame * var_stride + place, tl.where(inside, spread, 1.0))


@triton.jit
def _one_layer(
    sums,
    centre,
    rows,
    mean,
    var,
    frames,
    channels,
    splits,
    positions,
    centre_stride,
    mean_stride,
    var_stride,
    HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUND: tl.constexpr,
):
    frame = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    row = frame * 0
    if HAS_ROWS:
        row = tl.load(rows + frame)
    m = tl.load(centre + row * centre_stride + c, mask=inside, other=0.0)
    apart, spread = _moments(sums, frame, frames, c, channels, inside, splits, positions, ROUND)
    tl.store(mean + frame * mean_stride + c, m + apart, mask=inside)
    tl.store(var + frame * var_stride + c, spread, mask=inside)


def finalise_(
    sums: Tensor,
    layers: Tensor,
    layer_of_block: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    var: Tensor,
) -> None:
    """See `finalise.finalise_`."""
    frames = len(mean)
    if not frames:
        return
    _all_layers[(len(layer_of_block), frames)](
        sums,
        layers,
        layer_of_block,
        centre,
        layers if rows is None else rows,
        mean,
        var,
        layers.shape[1],
        frames,
        centre.stride(0),
        mean.stride(0),
        var.stride(0),
        HAS_ROWS=rows is not None,
        BLOCK=_BLOCK,
        ROUND=_ROUND,
        num_warps=4,
    )


def finalise_layer_(
    sums: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    splits: int,
    positions: int,
    mean: Tensor,
    var: Tensor,
) -> None:
    """See `finalise.finalise_layer_`."""
    frames, channels = mean.shape
    if not mean.numel():
        return
    _one_layer[(triton.cdiv(channels, _BLOCK), frames)](
        sums,
        centre,
        sums if rows is None else rows,
        mean,
        var,
        frames,
        channels,
        splits,
        positions,
        centre.stride(0),
        mean.stride(0),
        var.stride(0),
        HAS_ROWS=rows is not None,
        BLOCK=_BLOCK,
        ROUND=_ROUND,
        num_warps=4,
    )
