# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""`Restarting.decide` and the bank's transaction; names as there."""

import triton
import triton.language as tl

from streamadapt.ops.commit.triton.pooling import (
    FRAMES_AT,
    KEPT,
    PENDING_AT,
    SECONDS_AT,
)
from streamadapt.ops.commit.triton.settings import (
    ALARM,
    ASIDE,
    BLOCK_FRAMES,
    BLOCK_SECONDS,
    BLOCKS,
    DIFFERS,
    EXCESS,
    FOLLOWING,
    FROM_SOURCE,
    INNOVATION,
    INSISTS,
    KNOWN_AFTER,
    LARGEST_RATIO,
    LEARNED_AFTER,
    LEAST_SHARE,
    LEVEL,
    LEVEL_HALF_LIFE,
    LN_2,
    MATERIAL,
    MOVED,
    NEAR,
    NEARER,
    NEARER_LIMIT,
    NEARER_SLACK,
    PARTS,
    PATIENCE,
    PENDING_FRAMES,
    PENDING_SECONDS,
    PHASE,
    RECENT,
    RESTING,
    SEEN,
    SETTLED_FRAMES,
    SETTLED_SECONDS,
    SETTLING,
    SLACK,
    UNLIKE,
    USUAL_LEVEL,
    WATCHED,
    WHOLE,
    within,
)


@triton.jit
def sums_of(parts, chunk_count, CHUNKS: tl.constexpr):
    """All sums over chunks at once: one wait for memory instead of seven."""
    innovation = tl.zeros([CHUNKS], tl.float64)
    from_source = tl.zeros([CHUNKS], tl.float64)
    near = tl.zeros([CHUNKS], tl.float64)
    differs = tl.zeros([CHUNKS], tl.float64)
    aside = tl.zeros([CHUNKS], tl.float64)
    moved = tl.zeros([CHUNKS], tl.float64)
    seen = tl.zeros([CHUNKS], tl.float64)
    for first in range(0, chunk_count, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        there = chunk < chunk_count
        at = parts + chunk
        innovation += tl.load(at + INNOVATION * chunk_count, mask=there, other=0.0)
        from_source += tl.load(at + FROM_SOURCE * chunk_count, mask=there, other=0.0)
        near += tl.load(at + NEAR * chunk_count, mask=there, other=0.0)
        differs += tl.load(at + DIFFERS * chunk_count, mask=there, other=0.0)
        aside += tl.load(at + ASIDE * chunk_count, mask=there, other=0.0)
        moved += tl.load(at + MOVED * chunk_count, mask=there, other=0.0)
        seen += tl.load(at + SEEN * chunk_count, mask=there, other=0.0)
    return (
        tl.sum(innovation, axis=0),
        tl.sum(from_source, axis=0),
        tl.sum(near, axis=0),
        tl.sum(differs, axis=0),
        tl.sum(aside, axis=0),
        tl.sum(moved, axis=0),
        tl.sum(seen, axis=0),
    )


@triton.jit(do_not_specialize=["row_count"])
def decide_rows(
    allowed,  # [rows] f64
    rows,  # [rows] i64
    positions,  # [layers] f64
    data,  # [*, 4, channels] f32, in and out
    tallies,  # [*, width] f64, in and out
    source,  # [2, channels] f32
    parameters,
    pooled,  # [2, rows, channels] f64; put right where a frame alone is not finite
    candidate,
    row_parts,
    before,
    results,  # [3, rows] f64, out: frames, verdict, phase
    row_count,
    channels,
    chunk_count,
    layer_count,
    width,
    ALONE: tl.constexpr,
    CHUNKS: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Phases, and what is written: every layer of a row, or none of it."""
    piece = tl.program_id(0)
    r = tl.program_id(1).to(tl.int64)
    row = tl.load(rows + r)
    at = piece * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    old = before + r * KEPT
    count = tl.load(old + FRAMES_AT)
    pending = tl.load(old + PENDING_AT)
    seconds = tl.load(old + SECONDS_AT)
    phase = tl.load(old + PHASE)
    settled_frames = tl.load(old + SETTLED_FRAMES)
    settled_seconds = tl.load(old + SETTLED_SECONDS)
    blocks = tl.load(old + BLOCKS)
    excess = tl.load(old + EXCESS)
    nearer = tl.load(old + NEARER)
    recent = tl.load(old + RECENT)
    insisted = tl.load(old + INSISTS)
    level = tl.load(old + LEVEL)
    material = tl.load(old + MATERIAL)
    block_frames = tl.load(parameters + BLOCK_FRAMES)
    block_seconds = tl.load(parameters + BLOCK_SECONDS)
    alarming = tl.load(parameters + ALARM)
    usual = tl.load(parameters + USUAL_LEVEL)
    unlike = tl.load(parameters + UNLIKE)
    watched = tl.load(parameters + WATCHED)
    free = tl.load(allowed + r)
    innovation, from_source, near_source, differs, aside_sum, moved_sum, seen = sums_of(
        row_parts + r * PARTS * chunk_count, chunk_count, CHUNKS
    )
    # Whatever is written is on its way while it is decided what.
    new = candidate + r * 4 * channels + at
    held = data + row * 4 * channels + at
    source_mean = tl.load(source + at, mask=inside, other=0.0)
    source_var = tl.load(source + channels + at, mask=inside, other=0.0)
    new_mean = tl.load(new, mask=inside, other=0.0)
    new_var = tl.load(new + channels, mask=inside, other=0.0)
    new_aside_mean = tl.load(new + 2 * channels, mask=inside, other=0.0)
    new_aside_var = tl.load(new + 3 * channels, mask=inside, other=0.0)
    if ALONE:  # noqa: SIM102 - one is known when it is compiled
        if seen * 0.0 != 0.0:
            count = 0.0 * count
            nothing = tl.zeros([BLOCK], tl.float64)
            tl.store(pooled + r * channels + at, nothing, mask=inside)
            tl.store(pooled + (row_count + r) * channels + at, nothing, mask=inside)
    accepted = count * free
    settling = phase == SETTLING
    following = phase == FOLLOWING
    whole = (pending >= block_frames) & (seconds >= block_seconds * WHOLE)
    ready = whole & (phase != SETTLING)
    moves = whole & following

    new_phase = phase
    new_pending = tl.where(settling, 0.0, pending)
    new_seconds = tl.where(settling, 0.0, seconds)
    new_level = level
    new_recent = recent
    new_insists = insisted
    alarm = phase != phase
    back = phase != phase
    if ready:
        innovation = innovation / watched
        ratio = innovation / level
        excess = tl.maximum(excess + tl.minimum(ratio, LARGEST_RATIO) - SLACK, 0.0)
        near = phase != phase
        if following:
            nearer = nearer + (innovation - from_source / watched) / level - NEARER_SLACK
            nearer = tl.maximum(nearer, 0.0)
            near = near_source / watched < material
        else:
            nearer = 0.0 * nearer
        alarm = (ratio > alarming) | (excess > PATIENCE) | (nearer > NEARER_LIMIT)
        same = differs == 0.0
        insists = (phase == RESTING) & (blocks >= 2.0) & (settled_frames >= KNOWN_AFTER)
        insists = insists & (recent > unlike) & same
        alarm = alarm | insists

        learns = following | (blocks < LEARNED_AFTER)
        share = 1.0 - tl.exp(pending * (-LN_2 / LEVEL_HALF_LIFE))
        share = tl.maximum(share, 1.0 / (blocks + 2.0))
        step = tl.minimum(tl.maximum(ratio, 0.25), tl.where(blocks > 1.0, 2.0, 9.0))
        moved = level * tl.exp(share * tl.log(step))
        mistaken = (blocks == 0.0) & (ratio > alarming)
        afresh = tl.where(mistaken, level * tl.sqrt(ratio), usual)
        floor = usual * LEAST_SHARE
        learned = tl.maximum(tl.where(learns, moved, level), floor)
        drifted = recent * tl.exp(share * tl.log(within(innovation / recent, 0.25, 4.0)))
        drifted = tl.where(learns, learned, tl.maximum(drifted, floor))

        back = following & near & (insisted == 0.0)
        start = alarm | back
        new_phase = tl.where(alarm, SETTLING, tl.where(back, RESTING, phase))
        settled_frames = tl.where(alarm, 0.0, settled_frames + pending)
        settled_seconds = tl.where(alarm, 0.0, settled_seconds + seconds)
        new_pending = 0.0 * pending
        new_seconds = 0.0 * seconds
        new_level = tl.where(start, afresh, learned)
        new_recent = tl.where(back, usual, drifted)
        blocks = tl.where(start, 0.0, blocks + 1.0)
        excess = tl.where(start, 0.0, excess)
        nearer = tl.where(start, 0.0, nearer)
        new_insists = tl.where(start, tl.where(insists, 1.0, 0.0), insisted)
        # Nothing above may hide it.
        new_level = tl.where(innovation == innovation, new_level, float("nan"))

    to_source = alarm | back
    check = new_phase + settled_frames + settled_seconds + new_pending + new_seconds + blocks
    check += excess + nearer + new_recent + new_insists + new_level + material
    if (phase != SETTLING) & (alarm == 0):
        check += aside_sum
        if moves & (back == 0):
            check += moved_sum
    finite = check * 0.0 == 0.0
    writes = finite & (accepted > 0.0)

    if writes:
        if to_source:
            tl.store(held, source_mean, mask=inside)
            tl.store(held + channels, source_var, mask=inside)
        elif moves:
            tl.store(held, new_mean, mask=inside)
            tl.store(held + channels, new_var, mask=inside)
        if alarm:
            tl.store(held + 2 * channels, source_mean, mask=inside)
            tl.store(held + 3 * channels, source_var, mask=inside)
        elif phase != SETTLING:
            tl.store(held + 2 * channels, new_aside_mean, mask=inside)
            tl.store(held + 3 * channels, new_aside_var, mask=inside)

    if piece == 0:
        tl.store(results + r, count)
        tl.store(results + row_count + r, tl.where(finite, accepted, -accepted))
        tl.store(results + 2 * row_count + r, tl.where(writes, new_phase, phase))
        if writes:
            tally = tallies + row * width
            tl.store(tally, tl.load(tally) + accepted)
            tl.store(tally + 1, tl.load(tally + 1) + 1.0)
            each = tl.arange(0, LAYERS)
            there = each < layer_count
            counts = tl.load(tally + 2 + each, mask=there, other=0.0)
            counts += accepted * tl.load(positions + each, mask=there, other=0.0)
            tl.store(tally + 2 + each, counts, mask=there)
            scalars = tally + 2 + layer_count
            tl.store(scalars + PHASE, new_phase)
            tl.store(scalars + SETTLED_FRAMES, settled_frames)
            tl.store(scalars + SETTLED_SECONDS, settled_seconds)
            tl.store(scalars + PENDING_FRAMES, new_pending)
            tl.store(scalars + PENDING_SECONDS, new_seconds)
            tl.store(scalars + BLOCKS, blocks)
            tl.store(scalars + EXCESS, excess)
            tl.store(scalars + NEARER, nearer)
            tl.store(scalars + RECENT, new_recent)
            tl.store(scalars + INSISTS, new_insists)
            tl.store(scalars + LEVEL, new_level)
