# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""`Restarting.update`, and the distances that `decide` asks for; names as there.

What each channel would become, and how far that is from what it was. A row's scalars are put aside
for the launch that decides, which writes them: no program there may read what another one writes.
"""

import triton
import triton.language as tl

from streamadapt.ops.commit.triton.pooling import (
    FRAMES_AT,
    KEPT,
    LARGEST,
    PENDING_AT,
    SECONDS_AT,
    frames_of,
    place_of,
    pool,
)
from streamadapt.ops.commit.triton.settings import (
    ASIDE,
    BLOCK_FRAMES,
    BLOCK_SECONDS,
    CLIP,
    DIFFERS,
    FOLLOWING,
    FROM_SOURCE,
    INNOVATION,
    LEAST_VARIANCE,
    LONGEST_FRAME,
    MAX_WEIGHT,
    MOST_VARIANCE,
    MOVED,
    NEAR,
    PARTS,
    PENDING_FRAMES,
    PENDING_SECONDS,
    PHASE,
    SCALARS,
    SEEN,
    SETTLING,
    SHORTEST_FRAME,
    TINY,
    TRUSTED_SIGMAS,
    WATCHED,
    WHOLE,
    within,
)


@triton.jit
def apart_from(mean, var, other_mean, other_var, eps):
    """Location-scale distance of channels."""
    va = var + (eps + TINY)
    vb = other_var + (eps + TINY)
    d = mean - other_mean
    log = tl.log(va / vb)
    apart = d * d / tl.sqrt(va * vb) + 0.5 * log * log
    return tl.where(apart > LARGEST, LARGEST, apart)  # keeps a NaN


@triton.jit(do_not_specialize=["row_count", "frames"])
def move_rows(
    mean,  # [frames, channels] f64
    var,
    weights,  # [rows, frames] f64
    elapsed,  # [rows] f64
    rows,  # [rows] i64
    data,  # [*, 4, channels] f32
    tallies,  # [*, width] f64
    source,  # [2, channels] f32
    parameters,  # f64
    chunks,  # [4, chunks] i64
    layers,  # [3, layers] f64
    order,  # of `weigh_frames`
    shares,
    pooled,  # [2, rows, channels] f64, out
    trust,  # [frames] f64, out: of a frame alone
    candidate,  # [rows, 4, channels] f32, out
    row_parts,  # [rows, PARTS, chunks] f64, out
    before,  # [rows, KEPT] f64, out
    mean_stride,
    var_stride,
    row_count,
    frames,
    channels,
    chunk_count,
    layer_count,
    width,
    ALONE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What each channel of each row would become, and the sums that decide whether it does."""
    chunk = tl.program_id(0)
    r = tl.program_id(1).to(tl.int64)
    row = tl.load(rows + r)
    start, size, whole_chunk, layer = place_of(chunks, chunk, chunk_count)
    scalars = tallies + row * width + 2 + layer_count
    phase = tl.load(scalars + PHASE)
    pending = tl.load(scalars + PENDING_FRAMES)
    seconds = tl.load(scalars + PENDING_SECONDS)
    passed = tl.load(elapsed + r)
    block_frames = tl.load(parameters + BLOCK_FRAMES)
    block_seconds = tl.load(parameters + BLOCK_SECONDS)
    clip = tl.load(parameters + CLIP)
    max_weight = tl.load(parameters + MAX_WEIGHT)
    watched = tl.load(parameters + WATCHED)
    eps = tl.load(layers + layer)
    layer_size = tl.load(layers + layer_count + layer)
    memory = tl.load(layers + 2 * layer_count + layer)
    count, live = frames_of(weights, shares, r, frames, ALONE)
    passed = tl.maximum(tl.minimum(passed, count * LONGEST_FRAME), count * SHORTEST_FRAME)
    pending += count
    seconds += passed
    whole = (pending >= block_frames) & (seconds >= block_seconds * WHOLE)
    ready = whole & (phase != SETTLING)
    moves = whole & (phase == FOLLOWING)
    if chunk == 0:
        if ALONE:
            tl.store(trust, 1.0)
        kept = tl.arange(0, KEPT)
        old = tl.load(scalars + kept, mask=kept < SCALARS, other=0.0)
        old = tl.where(kept == FRAMES_AT, count, old)
        old = tl.where(kept == PENDING_AT, pending, old)
        old = tl.where(kept == SECONDS_AT, seconds, old)
        tl.store(before + r * KEPT + kept, old)

    merged = count / tl.where(pending > 0.0, pending, 1.0)
    blended = tl.minimum(seconds / (memory + seconds), max_weight)
    factor = tl.exp(tl.minimum(2.0 * clip, 600.0))
    innovation = tl.zeros([BLOCK], tl.float64)
    from_source = tl.zeros([BLOCK], tl.float64)
    near = tl.zeros([BLOCK], tl.float64)
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
    held = data + row * 4 * channels + at
    held_mean = tl.load(held, mask=inside, other=0.0)
    held_var = tl.load(held + channels, mask=inside, other=1.0)
    source_mean = tl.load(source + at, mask=inside, other=0.0)
    source_var = tl.load(source + channels + at, mask=inside, other=1.0)
    aside_mean = tl.load(held + 2 * channels, mask=inside, other=0.0).to(tl.float64)
    aside_var = tl.load(held + 3 * channels, mask=inside, other=1.0).to(tl.float64)
    same = (held_mean == source_mean) & (held_var == source_var)
    differs = tl.where(same, 0.0, 1.0)
    held_mean = held_mean.to(tl.float64)
    held_var = held_var.to(tl.float64)
    source_mean = source_mean.to(tl.float64)
    source_var = source_var.to(tl.float64)

    # The block under way together with these frames.
    d = seen_mean - aside_mean
    aside_mean += d * merged
    aside_var += merged * (seen_var - aside_var) + d * d * (merged * (1.0 - merged))

    up = held_var + eps
    reach = clip * tl.sqrt(up)
    d = within(aside_mean - held_mean, -reach, reach)
    shown = within(aside_var, held_var / factor, up * factor)
    moved_mean = held_mean + d * blended
    moved_var = held_var + blended * (shown - held_var) + d * d * (blended * (1.0 - blended))
    up = source_var + eps
    far = TRUSTED_SIGMAS * tl.sqrt(up)
    moved_mean = source_mean + within(moved_mean - source_mean, -far, far)
    moved_var = within(moved_var, source_var * LEAST_VARIANCE, up * MOST_VARIANCE)

    # A variance below zero is zero; a NaN stays one.
    out = candidate + r * 4 * channels + at
    narrow_mean = moved_mean.to(tl.float32)
    narrow_var = tl.where(moved_var < 0.0, 0.0, moved_var).to(tl.float32)
    moved_sum = narrow_mean.to(tl.float64) + narrow_var.to(tl.float64)
    tl.store(out, narrow_mean, mask=inside)
    tl.store(out + channels, narrow_var, mask=inside)
    narrow_mean = aside_mean.to(tl.float32)
    narrow_var = tl.where(aside_var < 0.0, 0.0, aside_var).to(tl.float32)
    aside_sum = narrow_mean.to(tl.float64) + narrow_var.to(tl.float64)
    tl.store(out + 2 * channels, narrow_mean, mask=inside)
    tl.store(out + 3 * channels, narrow_var, mask=inside)
    seen_sum = seen_mean + seen_var

    if ready & (layer < watched):
        real = here < size
        apart = apart_from(aside_mean, aside_var, held_mean, held_var, eps)
        innovation = tl.where(real, apart, 0.0)
        if moves:
            apart = apart_from(aside_mean, aside_var, source_mean, source_var, eps)
            from_source = tl.where(real, apart, 0.0)
            apart = apart_from(moved_mean, moved_var, source_mean, source_var, eps)
            near = tl.where(real, apart, 0.0)
    out = row_parts + r * PARTS * chunk_count + chunk
    tl.store(out + INNOVATION * chunk_count, tl.sum(innovation, axis=0) / layer_size)
    tl.store(out + FROM_SOURCE * chunk_count, tl.sum(from_source, axis=0) / layer_size)
    tl.store(out + NEAR * chunk_count, tl.sum(near, axis=0) / layer_size)
    tl.store(out + DIFFERS * chunk_count, tl.sum(differs, axis=0))
    tl.store(out + ASIDE * chunk_count, tl.sum(aside_sum, axis=0))
    tl.store(out + MOVED * chunk_count, tl.sum(moved_sum, axis=0))
    tl.store(out + SEEN * chunk_count, tl.sum(seen_sum, axis=0))
