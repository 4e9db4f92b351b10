"""Launches, as operators that tracing and graphs know."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.ops.commit.plan import CHUNK
from streamadapt.ops.commit.triton.blending import COUNTED, blend_rows, write_rows
from streamadapt.ops.commit.triton.deciding import decide_rows
from streamadapt.ops.commit.triton.moving import move_rows
from streamadapt.ops.commit.triton.pooling import ENOUGH_FRAMES, look_at_frames, weigh_frames

_TILE = 2048  # values of a [frames, chunks] tile
_WINDOW = 8  # frames that are pooled at a time; 16 take more than twice the registers
_WRITTEN = 512  # channels of a row that one program decides on
_SUMS = 256


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _look(
    mean: Tensor,
    var: Tensor,
    weights: Tensor,
    rows: Tensor,
    data: Tensor,
    chunks: Tensor,
    layers: Tensor,
    parts: Tensor,
    trust: Tensor,
    order: Tensor,
    shares: Tensor,
    *,
    judged: bool,
) -> None:
    """The first two launches; a frame that is alone does without."""
    count, frames = weights.shape
    if frames == 1:
        return
    look_at_frames[(chunks.shape[1], frames)](
        mean,
        var,
        weights,
        rows,
        data,
        chunks,
        layers,
        parts,
        trust,
        mean.stride(0),
        var.stride(0),
        count,
        frames,
        mean.shape[1],
        chunks.shape[1],
        layers.shape[1],
        JUDGED=judged,
        ROWS=_power_of_two(count),
        BLOCK=CHUNK,
    )
    weigh_frames[(count,)](
        weights,
        parts,
        trust,
        order,
        shares,
        frames,
        chunks.shape[1],
        JUDGED=judged,
        **_weighing(frames),
    )


def _weighing(frames: int) -> dict[str, int]:
    """Of the tile in which the frames of a step are weighed, and the warps that do so."""
    whole = _power_of_two(frames)
    return {
        "FRAMES": whole,
        "CHUNKS": max(_TILE // whole, 8),
        "num_warps": 8,  # with many frames, 4 run out of registers
    }


def _pooling(rows: int, frames: int) -> dict[str, int | bool]:
    """Of the tiles in which they are pooled: as many frames at a time as a row has, of many."""
    window = min(_power_of_two(-(-frames // rows)), _WINDOW)
    return {"ALONE": frames == 1, "WINDOW": window, "BLOCK": CHUNK}


@torch.library.custom_op(
    "streamadapt::commit_restarting",
    mutates_args=(
        "data",
        "tallies",
        "pooled",
        "results",
        "trust",
        "parts",
        "order",
        "shares",
        "row_parts",
        "before",
        "candidate",
    ),
)
def commit_restarting(
    mean: Tensor,
    var: Tensor,
    weights: Tensor,
    elapsed: Tensor,
    allowed: Tensor,
    rows: Tensor,
    positions: Tensor,
    parameters: Tensor,
    source: Tensor,
    chunks: Tensor,
    layers: Tensor,
    data: Tensor,
    tallies: Tensor,
    pooled: Tensor,
    results: Tensor,
    trust: Tensor,
    parts: Tensor,
    order: Tensor,
    shares: Tensor,
    row_parts: Tensor,
    before: Tensor,
    candidate: Tensor,
) -> None:
    """Reduce a step's frames, move `Restarting` on, and write the bank: two launches, or four.

    Args:
        mean: `[frames, channels]` float64, of each frame; `channels` with padding, side by side.
        var: likewise.
        weights: `[rows, frames]` float64; a frame has weight in one row at most.
        elapsed: `[rows]` float64, camera time since each row's previous frames.
        allowed: `[rows]` float64, zero where a row is not to be changed, else one.
        rows: `[rows]` int64, of the bank, each once.
        positions: `[layers]` float64, of one frame.
        parameters: float64, in the order of `RESTARTING`.
        source: `[2, channels]` fp32.
        chunks: of `Places`.
        layers: likewise.
        data: `[*, 4, channels]` fp32, the bank's.
        tallies: `[*, 2 + layers + 13]` float64, the bank's, with scalars in the order of `SCALARS`.
        pooled: of `Outcome`, written.
        results: likewise.
        trust: likewise.
        parts: of `Room`.
        order: likewise.
        shares: likewise.
        row_parts: likewise.
        before: likewise.
        candidate: likewise.
    """
    count, frames = weights.shape
    judged = frames >= int(ENOUGH_FRAMES.value)
    _look(
        mean, var, weights, rows, data, chunks, layers, parts, trust, order, shares, judged=judged
    )
    channels, chunk_count = mean.shape[1], chunks.shape[1]
    layer_count, width = layers.shape[1], tallies.shape[1]
    move_rows[(chunk_count, count)](
        mean,
        var,
        weights,
        elapsed,
        rows,
        data,
        tallies,
        source,
        parameters,
        chunks,
        layers,
        order,
        shares,
        pooled,
        trust,
        candidate,
        row_parts,
        before,
        mean.stride(0),
        var.stride(0),
        count,
        frames,
        channels,
        chunk_count,
        layer_count,
        width,
        **_pooling(count, frames),
    )
    decide_rows[(-(-channels // _WRITTEN), count)](
        allowed,
        rows,
        positions,
        data,
        tallies,
        source,
        parameters,
        pooled,
        candidate,
        row_parts,
        before,
        results,
        count,
        channels,
        chunk_count,
        layer_count,
        width,
        ALONE=frames == 1,
        CHUNKS=_SUMS,
        LAYERS=_power_of_two(layer_count),
        BLOCK=_WRITTEN,
    )


@torch.library.custom_op(
    "streamadapt::commit_blended",
    mutates_args=(
        "data",
        "tallies",
        "pooled",
        "results",
        "trust",
        "parts",
        "order",
        "shares",
        "row_parts",
        "before",
        "candidate",
    ),
)
def commit_blended(
    mean: Tensor,
    var: Tensor,
    weights: Tensor,
    elapsed: Tensor,
    allowed: Tensor,
    rows: Tensor,
    positions: Tensor,
    parameters: Tensor,
    chunks: Tensor,
    layers: Tensor,
    data: Tensor,
    tallies: Tensor,
    pooled: Tensor,
    results: Tensor,
    trust: Tensor,
    parts: Tensor,
    order: Tensor,
    shares: Tensor,
    row_parts: Tensor,
    before: Tensor,
    candidate: Tensor,
    memory: int,
    unbiased: bool,
) -> None:
    """The same for `EMA` and `Welford`.

    Args:
        mean: as of `commit_restarting`, like all that is not named here.
        var: likewise.
        weights: likewise.
        elapsed: likewise; not read where time does not decide.
        allowed: likewise.
        rows: likewise.
        positions: likewise.
        parameters: float64, in the order of `BLENDING`.
        chunks: likewise.
        layers: likewise.
        data: `[*, 2, channels]` fp32; `[*, 4, channels]` with the halves of 48 bits for `Welford`.
        tallies: `[*, 2 + layers]` float64.
        pooled: likewise.
        results: likewise; the phase is zero.
        trust: likewise; ones.
        parts: likewise.
        order: likewise.
        shares: likewise.
        row_parts: likewise.
        before: likewise.
        candidate: likewise.
        memory: place in `MEMORY`.
        unbiased: take the unbiased variance, and leave out the spread between old and new.
    """
    count, frames = weights.shape
    _look(mean, var, weights, rows, data, chunks, layers, parts, trust, order, shares, judged=False)
    channels, chunk_count = mean.shape[1], chunks.shape[1]
    layer_count, width = layers.shape[1], tallies.shape[1]
    assert data.shape[1] == (4 if memory == int(COUNTED.value) else 2)
    blend_rows[(chunk_count, count)](
        mean,
        var,
        weights,
        elapsed,
        rows,
        positions,
        data,
        tallies,
        parameters,
        chunks,
        order,
        shares,
        pooled,
        trust,
        candidate,
        row_parts,
        before,
        mean.stride(0),
        var.stride(0),
        count,
        frames,
        channels,
        chunk_count,
        width,
        MEMORY=memory,
        UNBIASED=unbiased,
        **_pooling(count, frames),
    )
    write_rows[(-(-channels // _WRITTEN), count)](
        allowed,
        rows,
        positions,
        data,
        tallies,
        parameters,
        pooled,
        candidate,
        row_parts,
        before,
        results,
        count,
        channels,
        chunk_count,
        layer_count,
        width,
        MEMORY=memory,
        ALONE=frames == 1,
        CHUNKS=_SUMS,
        LAYERS=_power_of_two(layer_count),
        BLOCK=_WRITTEN,
    )


@commit_restarting.register_fake
@commit_blended.register_fake
def _nothing(*args: object, **kwargs: object) -> None:
    return None
