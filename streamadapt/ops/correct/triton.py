"""`correct` on a GPU: a program a frame (own statistics), a program a frame and block (later)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_LARGEST_LOG_RATIO = tl.constexpr(7.0)  # `reference.LARGEST_LOG_RATIO`
_LATER_BLOCK = 1024


@triton.jit
def _load_rows(table, rows, frame, c, inside, row_stride, field_stride, HAS_ROWS: tl.constexpr):
    row = frame * 0
    if HAS_ROWS:
        row = tl.load(rows + frame)
    at = table + row * row_stride + c
    scale = tl.load(at, mask=inside, other=0.0)
    shift = tl.load(at + field_stride, mask=inside, other=0.0)
    precision = tl.load(at + 2 * field_stride, mask=inside, other=1.0)
    centre = tl.load(at + 3 * field_stride, mask=inside, other=0.0)
    return scale, shift, precision, centre


@triton.jit
def _store_leant(at, field_stride, inside, scale, shift, centre, mean, log, weight):
    # In float64: `shift + centre scale` cancels where the mean is large.
    moves = weight > 0.0
    log = tl.minimum(tl.maximum(log, -_LARGEST_LOG_RATIO), _LARGEST_LOG_RATIO)
    turn = tl.where(moves, -0.5 * weight * log.to(tl.float64), 0.0)
    leant = scale.to(tl.float64) * tl.exp(turn)
    wide = centre.to(tl.float64)
    moved = wide + tl.where(moves, weight * (mean - wide), 0.0)
    there = shift.to(tl.float64) + wide * scale.to(tl.float64) - moved * leant
    tl.store(at, leant.to(tl.float32), mask=inside)
    tl.store(at + field_stride, tl.where(moves, there.to(tl.float32), shift), mask=inside)
    tl.store(at + 2 * field_stride, centre, mask=inside)


@triton.jit
def _own(
    mean,
    var,
    table,
    rows,
    foreign,
    out,
    channels,
    mean_stride,
    var_stride,
    table_row_stride,
    table_field_stride,
    out_frame_stride,
    out_field_stride,
    eps,
    usual,
    FIRST: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    frame = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < channels
    scale, shift, precision, centre = _load_rows(
        table, rows, frame, c, inside, table_row_stride, table_field_stride, HAS_ROWS
    )
    own = tl.load(mean + frame * mean_stride + c, mask=inside, other=0.0)
    spread = tl.load(var + frame * var_stride + c, mask=inside, other=1.0).to(tl.float32)
    ratio = (spread + eps) * precision
    log = tl.log(ratio)
    offset = own.to(tl.float32) - centre
    apart = offset * offset * precision * tl.rsqrt(ratio) + 0.5 * log * log
    distance = tl.sum(tl.where(inside, apart, 0.0), axis=0).to(tl.float64) / channels
    share = usual / distance
    weight = tl.maximum(1.0 - share * share, 0.0)
    weight = tl.where(distance * 0.0 == 0.0, weight, 0.0)
    found = tl.maximum(4.0 * weight - 3.0, 0.0)
    if not FIRST:
        found = tl.maximum(found, tl.load(foreign + frame))
    tl.store(foreign + frame, found)
    at = out + frame * out_frame_stride + c
    _store_leant(at, out_field_stride, inside, scale, shift, centre, own, log, weight)


@triton.jit
def _later(
    foreign,
    table,
    source,
    rows,
    out,
    channels,
    table_row_stride,
    table_field_stride,
    source_field_stride,
    out_frame_stride,
    out_field_stride,
    HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    frame = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    scale, shift, precision, centre = _load_rows(
        table, rows, frame, c, inside, table_row_stride, table_field_stride, HAS_ROWS
    )
    other = tl.load(source + 2 * source_field_stride + c, mask=inside, other=1.0)
    mean = tl.load(source + 3 * source_field_stride + c, mask=inside, other=0.0).to(tl.float64)
    weight = tl.load(foreign + frame)
    log = tl.log(precision / other)
    at = out + frame * out_frame_stride + c
    _store_leant(at, out_field_stride, inside, scale, shift, centre, mean, log, weight)


def correct_own_(
    mean: Tensor,
    var: Tensor,
    table: Tensor,
    rows: Tensor | None,
    eps: float,
    usual: float,
    first: bool,
    foreign: Tensor,
    out: Tensor,
) -> None:
    """See `correct.correct_own_`; channels lie side by side in every argument."""
    frames, channels = mean.shape
    block = triton.next_power_of_2(channels)
    _own[(frames,)](
        mean,
        var,
        table,
        rows,
        foreign,
        out,
        channels,
        mean.stride(0),
        var.stride(0),
        table.stride(0),
        table.stride(1),
        out.stride(0),
        out.stride(1),
        eps,
        usual,
        FIRST=first,
        HAS_ROWS=rows is not None,
        BLOCK=block,
        num_warps=min(max(block // 128, 1), 8),
    )


def correct_later_(
    foreign: Tensor, table: Tensor, source: Tensor, rows: Tensor | None, out: Tensor
) -> None:
    """See `correct.correct_later_`; channels lie side by side in every argument."""
    channels = table.shape[2]
    _later[(len(foreign), triton.cdiv(channels, _LATER_BLOCK))](
        foreign,
        table,
        source,
        rows,
        out,
        channels,
        table.stride(0),
        table.stride(1),
        source.stride(0),
        out.stride(0),
        out.stride(1),
        HAS_ROWS=rows is not None,
        BLOCK=_LATER_BLOCK,
        num_warps=4,
    )
