# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""`EMA.update` and `Welford.update`, and the bank's transaction."""

import math

import triton
import triton.language as tl

from streamadapt.ops.commit.triton.pooling import (
    FRAMES_AT,
    KEPT,
    frames_of,
    place_of,
    pool,
    total,
)

# What the weight of a batch follows from; `MEMORY` in `plan.py`.
MOMENTUM = tl.constexpr(0)
BY_FRAMES = tl.constexpr(1)
BY_SECONDS = tl.constexpr(2)
COUNTED = tl.constexpr(3)

# The order of the parameters; `BLENDING` in `plan.py`.
VALUE = tl.constexpr(0)
PRIOR_FRAMES = tl.constexpr(1)
MAX_FRAMES = tl.constexpr(2)

NEW = tl.constexpr(0)
SEEN = tl.constexpr(1)
PARTS = tl.constexpr(7)  # as the other estimator has them
LONGEST_FRAME = tl.constexpr(1.0)
LN_2 = tl.constexpr(math.log(2.0))


@triton.jit
def count_before(count, positions, parameters):
    """Positions that a layer's estimate rests on, as far as they are to count."""
    prior = tl.load(parameters + PRIOR_FRAMES)
    most = tl.load(parameters + MAX_FRAMES)
    return tl.minimum(tl.where(count > 0.0, count, prior * positions), most * positions)


@triton.jit(do_not_specialize=["row_count", "frames"])
def blend_rows(
    mean,  # [frames, channels] f64
    var,
    weights,  # [rows, frames] f64
    elapsed,  # [rows] f64; read where time decides
    rows,  # [rows] i64
    positions,  # [layers] f64
    data,  # [*, fields, channels] f32
    tallies,  # [*, width] f64
    parameters,
    chunks,  # [4, chunks] i64
    order,  # of `weigh_frames`
    shares,
    pooled,  # [2, rows, channels] f64, out
    trust,  # [frames] f64, out: one, of a frame alone
    candidate,  # [rows, 4, channels] f32, out
    row_parts,  # [rows, PARTS, chunks] f64, out
    before,  # [rows, KEPT] f64, out
    mean_stride,
    var_stride,
    row_count,
    frames,
    channels,
    chunk_count,
    width,
    MEMORY: tl.constexpr,
    UNBIASED: tl.constexpr,
    ALONE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What each channel of each row would become."""
    chunk = tl.program_id(0)
    r = tl.program_id(1).to(tl.int64)
    row = tl.load(rows + r)
    start, _size, whole_chunk, layer = place_of(chunks, chunk, chunk_count)
    count, live = frames_of(weights, shares, r, frames, ALONE)
    now = count * tl.load(positions + layer)
    if MEMORY == COUNTED:
        held_count = tl.load(tallies + row * width + 2 + layer)
        everything = count_before(held_count, tl.load(positions + layer), parameters) + now
        share_new = now / tl.where(everything > 0.0, everything, 1.0)
        fields = 4
    else:
        share_new = tl.load(parameters + VALUE)
        if MEMORY == BY_FRAMES:
            share_new = 1.0 - tl.exp(count * -LN_2 / share_new)
        if MEMORY == BY_SECONDS:
            spent = tl.minimum(tl.load(elapsed + r), count * LONGEST_FRAME)
            share_new = 1.0 - tl.exp(spent * -LN_2 / share_new)
        fields = 2
    if chunk == 0:
        tl.store(before + r * KEPT + FRAMES_AT, count)
        if ALONE:
            tl.store(trust, 1.0)
    here = tl.arange(0, BLOCK)
    inside = here < whole_chunk
    at = start + here
    seen_mean, seen_var = pool(
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
        ALONE,
        WINDOW,
        BLOCK,
    )
    tl.store(pooled + r * channels + at, seen_mean, mask=inside)
    tl.store(pooled + (row_count + r) * channels + at, seen_var, mask=inside)
    seen_sum = seen_mean + seen_var
    held = data + row * fields * channels + at
    new_mean = tl.load(held, mask=inside, other=0.0).to(tl.float64)
    new_var = tl.load(held + channels, mask=inside, other=0.0).to(tl.float64)
    if MEMORY == COUNTED:
        new_mean += tl.load(held + 2 * channels, mask=inside, other=0.0).to(tl.float64)
        new_var += tl.load(held + 3 * channels, mask=inside, other=0.0).to(tl.float64)
    d = seen_mean - new_mean
    new_mean += d * share_new
    if UNBIASED:
        bessel = now / tl.maximum(now - 1.0, 0.5)
        shown = tl.where(now > 1.0, seen_var * bessel, seen_var)
        new_var += share_new * (shown - new_var)
    else:
        spread = d * d * (share_new * (1.0 - share_new))
        new_var += share_new * (seen_var - new_var) + spread
    new_var = tl.where(new_var < 0.0, 0.0, new_var)  # keeps a NaN
    out = candidate + r * 4 * channels + at
    narrow_mean = new_mean.to(tl.float32)
    narrow_var = new_var.to(tl.float32)
    tl.store(out, narrow_mean, mask=inside)
    tl.store(out + channels, narrow_var, mask=inside)
    new_sum = narrow_mean.to(tl.float64) + narrow_var.to(tl.float64)
    if MEMORY == COUNTED:
        low_mean = (new_mean - narrow_mean.to(tl.float64)).to(tl.float32)
        low_var = (new_var - narrow_var.to(tl.float64)).to(tl.float32)
        tl.store(out + 2 * channels, low_mean, mask=inside)
        tl.store(out + 3 * channels, low_var, mask=inside)
    out = row_parts + r * PARTS * chunk_count + chunk
    tl.store(out + NEW * chunk_count, tl.sum(new_sum, axis=0))
    tl.store(out + SEEN * chunk_count, tl.sum(seen_sum, axis=0))


@triton.jit(do_not_specialize=["row_count"])
def write_rows(
    allowed,  # [rows] f64
    rows,  # [rows] i64
    positions,  # [layers] f64
    data,  # [*, fields, channels] f32, out
    tallies,  # [*, width] f64, in and out
    parameters,
    pooled,
    candidate,
    row_parts,
    before,
    results,  # [3, rows] f64, out: frames, verdict, zero
    row_count,
    channels,
    chunk_count,
    layer_count,
    width,
    MEMORY: tl.constexpr,
    ALONE: tl.constexpr,
    CHUNKS: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every layer of a row, or none of it."""
    piece = tl.program_id(0)
    r = tl.program_id(1).to(tl.int64)
    row = tl.load(rows + r)
    at = piece * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    sums = row_parts + r * PARTS * chunk_count
    count = tl.load(before + r * KEPT + FRAMES_AT)
    if ALONE:
        seen = total(sums + SEEN * chunk_count, chunk_count, CHUNKS)
        if seen * 0.0 != 0.0:
            count = 0.0 * count
            nothing = tl.zeros([BLOCK], tl.float64)
            tl.store(pooled + r * channels + at, nothing, mask=inside)
            tl.store(pooled + (row_count + r) * channels + at, nothing, mask=inside)
    accepted = count * tl.load(allowed + r)
    finite = total(sums + NEW * chunk_count, chunk_count, CHUNKS) * 0.0 == 0.0
    writes = finite & (accepted > 0.0)
    fields = 4 if MEMORY == COUNTED else 2
    if writes:
        for field in range(fields):
            new = tl.load(candidate + (r * 4 + field) * channels + at, mask=inside)
            tl.store(data + (row * fields + field) * channels + at, new, mask=inside)
    if piece == 0:
        tl.store(results + r, count)
        tl.store(results + row_count + r, tl.where(finite | (count == 0.0), accepted, -accepted))
        tl.store(results + 2 * row_count + r, 0.0)
        if writes:
            tally = tallies + row * width
            tl.store(tally, tl.load(tally) + accepted)
            tl.store(tally + 1, tl.load(tally + 1) + 1.0)
            each = tl.arange(0, LAYERS)
            there = each < layer_count
            counts = tl.load(tally + 2 + each, mask=there, other=0.0)
            grown = tl.load(positions + each, mask=there, other=0.0)
            if MEMORY == COUNTED:
                counts = count_before(counts, grown, parameters) + count * grown
            else:
                counts += accepted * grown
            tl.store(tally + 2 + each, counts, mask=there)
