# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Frames to rows: what every estimator's commit begins with.

A *chunk* is up to `BLOCK` channels of one layer, so that no sum over a layer's channels has to look
up where they end. Sums over chunks are taken by every program that needs them, in the order of the
chunks: no atomics, and the same bits in every run.
"""

import triton
import triton.language as tl

LARGEST = tl.constexpr(100.0)  # distance of one channel
FURTHEST = tl.constexpr(1e15)
NEAREST = tl.constexpr(1.0 / 1e15)
FLOOR = tl.constexpr(1e-30)
ENOUGH_FRAMES = tl.constexpr(4)
USUAL = tl.constexpr(3.0)

# What `before` keeps of a row behind its scalars, for the launch that follows.
FRAMES_AT = tl.constexpr(13)
PENDING_AT = tl.constexpr(14)
SECONDS_AT = tl.constexpr(15)
KEPT = tl.constexpr(16)


@triton.jit
def place_of(chunks, chunk, chunk_count):
    """Of a chunk: first channel, how many there are, how many with padding, layer."""
    start = tl.load(chunks + chunk)
    size = tl.load(chunks + chunk_count + chunk)
    whole = tl.load(chunks + 2 * chunk_count + chunk)
    layer = tl.load(chunks + 3 * chunk_count + chunk)
    return start, size, whole, layer


@triton.jit(do_not_specialize=["row_count", "frames"])
def look_at_frames(
    mean,  # [frames, channels] f64, mean_stride apart
    var,
    weights,  # [rows, frames] f64
    rows,  # [rows] i64
    data,  # [*, 4, channels] f32
    chunks,  # [4, chunks] i64
    layers,  # [3, layers] f64: eps, channels, memory in seconds
    parts,  # [2, frames, chunks] f64, out: sums that tell what is not finite; distances
    trust,  # [frames] f64, out: ones
    mean_stride,
    var_stride,
    row_count,
    frames,
    channels,
    chunk_count,
    layer_count,
    JUDGED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of each frame and chunk: is it finite, and how far is it from its row (`JUDGED`)."""
    chunk = tl.program_id(0)
    frame = tl.program_id(1).to(tl.int64)
    start, size, whole, layer = place_of(chunks, chunk, chunk_count)
    here = tl.arange(0, BLOCK)
    at = start + here
    m = tl.load(mean + frame * mean_stride + at, mask=here < whole, other=0.0)
    v = tl.load(var + frame * var_stride + at, mask=here < whole, other=0.0)
    out = parts + frame * chunk_count + chunk
    tl.store(out, tl.sum(m + v, axis=0))
    if chunk == 0:
        tl.store(trust + frame, 1.0)
    if JUDGED:
        each = tl.arange(0, ROWS)
        weight = tl.load(weights + each * frames + frame, mask=each < row_count, other=0.0)
        # A frame has weight in one row at most.
        row = tl.load(rows + tl.sum(tl.where(weight > 0.0, each, 0), axis=0))
        held = data + row * 4 * channels + at
        real = here < size
        eps = tl.load(layers + layer)
        floor = (eps + FLOOR).to(tl.float32)
        centre = tl.load(held, mask=real, other=0.0)
        precision = 1.0 / (tl.load(held + channels, mask=real, other=1.0) + floor)
        ratio = (v.to(tl.float32) + floor) * precision
        ratio = tl.minimum(tl.maximum(ratio, NEAREST), FURTHEST)
        offset = (m.to(tl.float32) - centre) * tl.sqrt(precision)
        offset = tl.minimum(tl.maximum(offset, -FURTHEST), FURTHEST)
        log = tl.log(ratio)
        apart = offset * offset * tl.rsqrt(ratio) + 0.5 * log * log
        apart = tl.where(real, tl.minimum(apart, LARGEST), 0.0).to(tl.float64)
        share = 1.0 / (tl.load(layers + layer_count + layer) * layer_count)
        tl.store(out + frames * chunk_count, tl.sum(apart, axis=0) * share)


@triton.jit(do_not_specialize=["frames"])
def weigh_frames(
    weights,  # [rows, frames] f64
    parts,  # of `look_at_frames`
    trust,  # [frames] f64, out, as far as frames are of a row
    order,  # [rows, frames] i64, out: the frames of each row, one after another
    shares,  # [rows, frames + 2] f64, out: their shares; how many there were, and how many count
    frames,
    chunk_count,
    JUDGED: tl.constexpr,
    FRAMES: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Which part of a row's moments each frame is, and how much it is trusted."""
    r = tl.program_id(0).to(tl.int64)
    each = tl.arange(0, FRAMES)
    weight = tl.load(weights + r * frames + each, mask=each < frames, other=0.0)
    member = weight > 0.0
    sums = tl.zeros([FRAMES, CHUNKS], tl.float64)
    apart = tl.zeros([FRAMES, CHUNKS], tl.float64)
    for first in range(0, chunk_count, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        there = member[:, None] & (chunk < chunk_count)[None, :]
        at = each[:, None] * chunk_count + chunk[None, :]
        sums += tl.load(parts + at, mask=there, other=0.0)
        if JUDGED:
            apart += tl.load(parts + frames * chunk_count + at, mask=there, other=0.0)
    # Zero times what is not finite is not zero.
    finite = tl.sum(sums, axis=1) * 0.0 == 0.0
    weight = tl.where(finite, weight, 0.0)
    share = weight
    if JUDGED:
        distance = tl.sum(apart, axis=1)
        present = member & finite & (distance == distance)
        count = tl.sum(present.to(tl.int32), axis=0)
        distance = tl.where(present, distance, float("inf"))
        # The lower median: so many are smaller, and so many more are not larger.
        middle = (count - 1) // 2
        below = tl.sum((distance[None, :] < distance[:, None]).to(tl.int32), axis=1)
        up_to = tl.sum((distance[None, :] <= distance[:, None]).to(tl.int32), axis=1)
        median = present & (below <= middle) & (up_to > middle)
        limit = USUAL * tl.max(tl.where(median, distance, 0.0), axis=0)
        judged = 2.0 - distance / tl.maximum(limit, 1e-150)
        judged = tl.minimum(tl.maximum(judged, 0.0), 1.0)
        judged = tl.where(present & (count >= ENOUGH_FRAMES), judged, 1.0)
        tl.store(trust + each, judged, mask=member)
        share = weight * judged
    counts = share > 0.0
    share = share / tl.maximum(tl.sum(share, axis=0), 1e-300)
    place = tl.cumsum(counts.to(tl.int32), axis=0) - 1
    tl.store(order + r * frames + place, each.to(tl.int64), mask=counts)
    out = shares + r * (frames + 2)
    tl.store(out + place, share, mask=counts)
    tl.store(out + frames, tl.sum(weight, axis=0))
    tl.store(out + frames + 1, tl.sum(counts.to(tl.int32), axis=0).to(tl.float64))


@triton.jit
def frames_of(weights, shares, r, frames, ALONE: tl.constexpr):
    """How many frames a row has, and how many of them count.

    A frame that is alone in its step is taken for finite: the decision finds out.
    """
    if ALONE:
        count = tl.load(weights + r)
        live = (count > 0.0).to(tl.int32)
    else:
        count = tl.load(shares + r * (frames + 2) + frames)
        live = tl.load(shares + r * (frames + 2) + frames + 1).to(tl.int32)
    return count, live


@triton.jit
def pool(
    mean,
    var,
    order,
    shares,
    mean_stride,
    var_stride,
    r,
    frames,
    live,
    at,
    inside,
    ALONE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean and variance of a row's frames in the channels `at`."""
    centre = tl.zeros([BLOCK], tl.float64)
    spread = tl.zeros([BLOCK], tl.float64)
    if ALONE:
        if live > 0:
            centre = tl.load(mean + at, mask=inside, other=0.0)
            spread = tl.load(var + at, mask=inside, other=0.0)
    else:
        order += r * frames
        shares += r * (frames + 2)
        for first in range(0, live, WINDOW):
            k = first + tl.arange(0, WINDOW)
            frame = tl.load(order + k, mask=k < live, other=0)
            share = tl.load(shares + k, mask=k < live, other=0.0)
            there = (k < live)[:, None] & inside[None, :]
            m = tl.load(mean + frame[:, None] * mean_stride + at[None, :], mask=there, other=0.0)
            centre += tl.sum(share[:, None] * m, axis=0)
        for first in range(0, live, WINDOW):
            k = first + tl.arange(0, WINDOW)
            frame = tl.load(order + k, mask=k < live, other=0)
            share = tl.load(shares + k, mask=k < live, other=0.0)
            there = (k < live)[:, None] & inside[None, :]
            m = tl.load(mean + frame[:, None] * mean_stride + at[None, :], mask=there, other=0.0)
            v = tl.load(var + frame[:, None] * var_stride + at[None, :], mask=there, other=0.0)
            apart = tl.where(there, m - centre[None, :], 0.0)
            spread += tl.sum(share[:, None] * (v + apart * apart), axis=0)
    return centre, spread


@triton.jit
def total(parts, chunk_count, CHUNKS: tl.constexpr):
    """The sum over chunks."""
    sums = tl.zeros([CHUNKS], tl.float64)
    for first in range(0, chunk_count, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        sums += tl.load(parts + chunk, mask=chunk < chunk_count, other=0.0)
    return tl.sum(sums, axis=0)
