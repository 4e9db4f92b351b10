"""`apply_collect` on a GPU: one read, one write, and partial sums on the way.

Two kernels, for channels and for positions side by side in memory. Where lines are a multiple of
16 bytes long, so are loads and stores; the divisor that the compiler has to know for this is part
of the launch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamadapt.ops.apply import native
from streamadapt.ops.apply.shapes import Shape, shape_of

_WARPS = 4


@triton.jit
def _finished(
    v, residual, at, mask, low, high, ADDS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr
):
    if ADDS:
        v += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    # Not `maximum`: what is no number has to stay so.
    if LOW:
        v = tl.where(v < low, low, v)
    if HIGH:
        v = tl.where(v > high, high, v)
    return v


@triton.jit
def _channels_last(
    x,
    y,
    residual,
    scale,
    shift,
    centre,
    rows,
    sums,
    frames,
    groups,
    positions,
    scale_stride,
    shift_stride,
    centre_stride,
    low,
    high,
    DIVISOR: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    APPLIES: tl.constexpr,
    COLLECTS: tl.constexpr,
    ADDS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STEPS: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
):
    channels = groups * DIVISOR
    frame = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1)
    if not COLLECTS:  # the end of what was looked at in a pass before is still in the cache
        frame = tl.num_programs(2) - 1 - frame
        split = tl.num_programs(1) - 1 - split
    c = tl.program_id(0) * INNER + tl.arange(0, INNER)
    inside = c < channels
    row = frame * 0
    if HAS_ROWS:
        row = tl.load(rows + frame)
    a = tl.zeros([INNER], tl.float32)
    b = tl.zeros([INNER], tl.float32)
    m = tl.zeros([INNER], tl.float32)
    if APPLIES:
        a = tl.load(scale + row * scale_stride + c, mask=inside, other=0.0)
        b = tl.load(shift + row * shift_stride + c, mask=inside, other=0.0)
    if COLLECTS:
        m = tl.load(centre + row * centre_stride + c, mask=inside, other=0.0)
    start = frame * positions * channels
    x += start
    y += start
    residual += start
    total = tl.zeros([OUTER, INNER], tl.float32)
    squares = tl.zeros([OUTER, INNER], tl.float32)
    first = split * (STEPS * OUTER)
    for step in range(STEPS):
        p = first + step * OUTER + tl.arange(0, OUTER)
        mask = (p < positions)[:, None] & inside[None, :]
        at = p[:, None] * channels + c[None, :]
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if COLLECTS:
            d = tl.where(mask, v - m[None, :], 0.0)
            total += d
            squares += d * d
        if APPLIES:
            v = v * a[None, :] + b[None, :]
            v = _finished(v, residual, at, mask, low, high, ADDS, LOW, HIGH)
            tl.store(y + at, v.to(y.dtype.element_ty), mask=mask)
    if COLLECTS:
        there = sums + (split.to(tl.int64) * 2 * frames + frame) * channels + c
        tl.store(there, tl.sum(total, axis=0), mask=inside)
        field = (frame * 0 + frames) * channels
        tl.store(there + field, tl.sum(squares, axis=0), mask=inside)


@triton.jit
def _positions_last(
    x,
    y,
    residual,
    scale,
    shift,
    centre,
    rows,
    sums,
    frames,
    channels,
    groups,
    scale_stride,
    shift_stride,
    centre_stride,
    low,
    high,
    DIVISOR: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    APPLIES: tl.constexpr,
    COLLECTS: tl.constexpr,
    ADDS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STEPS: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
):
    positions = groups * DIVISOR
    split = tl.program_id(1)
    block = tl.program_id(0).to(tl.int64)
    if not COLLECTS:
        block = tl.num_programs(0) - 1 - block
        split = tl.num_programs(1) - 1 - split
    lines = (block * 0 + frames) * channels
    line = block * OUTER + tl.arange(0, OUTER)
    inside = line < lines
    frame = line // channels
    channel = line - frame * channels
    row = frame * 0
    if HAS_ROWS:
        row = tl.load(rows + frame, mask=inside, other=0)
    a = tl.zeros([OUTER], tl.float32)
    b = tl.zeros([OUTER], tl.float32)
    m = tl.zeros([OUTER], tl.float32)
    if APPLIES:
        a = tl.load(scale + row * scale_stride + channel, mask=inside, other=0.0)
        b = tl.load(shift + row * shift_stride + channel, mask=inside, other=0.0)
    if COLLECTS:
        m = tl.load(centre + row * centre_stride + channel, mask=inside, other=0.0)
    total = tl.zeros([OUTER, INNER], tl.float32)
    squares = tl.zeros([OUTER, INNER], tl.float32)
    first = split * (STEPS * INNER)
    for step in range(STEPS):
        p = first + step * INNER + tl.arange(0, INNER)
        mask = inside[:, None] & (p < positions)[None, :]
        at = line[:, None] * positions + p[None, :]
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if COLLECTS:
            d = tl.where(mask, v - m[:, None], 0.0)
            total += d
            squares += d * d
        if APPLIES:
            v = v * a[:, None] + b[:, None]
            v = _finished(v, residual, at, mask, low, high, ADDS, LOW, HIGH)
            tl.store(y + at, v.to(y.dtype.element_ty), mask=mask)
    if COLLECTS:
        there = sums + split.to(tl.int64) * 2 * lines + line
        tl.store(there, tl.sum(total, axis=1), mask=inside)
        tl.store(there + lines, tl.sum(squares, axis=1), mask=inside)


def collect_partials(x: Tensor, centre: Tensor, rows: Tensor | None, sums: Tensor) -> None:
    """See `apply.collect_partials`."""
    shape = shape_of(x)
    if shape is None or not x.numel():
        native.collect_partials(x, centre, rows, sums)
        return
    _launch(shape, x, x, centre, centre, centre, rows, None, -math.inf, math.inf, sums, False)


def apply_collect_(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    residual: Tensor | None,
    low: float,
    high: float,
    sums: Tensor | None,
) -> None:
    """See `apply.apply_collect_`."""
    shape = _shape(x, residual)
    if shape is None or not x.numel():
        native.apply_collect_(x, scale, shift, centre, rows, residual, low, high, sums)
        return
    _launch(shape, x, x, scale, shift, centre, rows, residual, low, high, sums, True)


def apply_collect(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    residual: Tensor | None,
    low: float,
    high: float,
    sums: Tensor | None,
) -> Tensor:
    """See `apply.apply_collect`."""
    shape = _shape(x, residual)
    if shape is None or not x.numel():
        return native.apply_collect(x, scale, shift, centre, rows, residual, low, high, sums)
    y = torch.empty_like(x)
    _launch(shape, x, y, scale, shift, centre, rows, residual, low, high, sums, True)
    return y


def _shape(x: Tensor, residual: Tensor | None) -> Shape | None:
    """None: not in an order, or not both in the same, that there is a kernel for."""
    shape = shape_of(x)
    if residual is None or shape is None:
        return shape
    alike = residual.shape == x.shape and residual.dtype is x.dtype
    return shape if alike and shape_of(residual) == shape else None


def _launch(
    shape: Shape,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    residual: Tensor | None,
    low: float,
    high: float,
    sums: Tensor | None,
    applies: bool,
) -> None:
    outer, inner = shape.block
    # Pointers that are not followed stand for those that are not there.
    given = (x if one is None else one for one in (residual, scale, shift, centre, rows, sums))
    pointers = (x, y, *given)
    strides = (scale.stride(0), shift.stride(0), centre.stride(0))
    divisor = math.gcd(shape.channels if shape.channels_last else shape.positions, 16)
    meta = {
        "DIVISOR": divisor,
        "HAS_ROWS": rows is not None,
        "APPLIES": applies,
        "COLLECTS": sums is not None,
        "ADDS": residual is not None,
        "LOW": low > -math.inf,
        "HIGH": high < math.inf,
        "STEPS": shape.steps,
        "OUTER": outer,
        "INNER": inner,
        "num_warps": _WARPS,
    }
    frames, channels, positions = shape.frames, shape.channels, shape.positions
    if shape.channels_last:
        kernel, sizes = _channels_last, (frames, channels // divisor, positions)
        grid = (triton.cdiv(channels, inner), shape.splits, frames)
    else:
        kernel, sizes = _positions_last, (frames, channels, positions // divisor)
        grid = (triton.cdiv(frames * channels, outer), shape.splits, 1)
    kernel[grid](*pointers, *sizes, *strides, low, high, **meta)
