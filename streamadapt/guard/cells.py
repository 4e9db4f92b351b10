"""A frame in few numbers: the means of its cells, its contrast, its level."""

from __future__ import annotations

import torch
from torch import Tensor

EDGE = 16  # cells along an edge
_HASHED = 4 * EDGE * EDGE  # cells of the first channels
_AT_MAXIMUM = 0.02  # of the frame's contrast


def measures(cells: Tensor, weights: Tensor) -> Tensor:
    """Contrast twice, level, share of cells at the maximum, a hash: `[frames, 5]`."""
    mean = cells.mean(dim=2, keepdim=True)
    apart = cells - mean
    flat = apart.flatten(1)
    size = flat.shape[1]
    contrast = torch.linalg.vector_norm(flat, dim=1) * size**-0.5
    top = apart.amax(dim=2, keepdim=True)
    near = apart >= torch.sub(top, contrast.view(-1, 1, 1), alpha=_AT_MAXIMUM)
    share = near.flatten(1).float().mean(dim=1)
    level = mean.flatten(1).mean(dim=1)
    hashed = torch.linalg.vecdot(flat[:, :_HASHED], weights[:size])
    return torch.stack([contrast, contrast, level, share, hashed], dim=1)


def cells_of(frames: Tensor) -> Tensor:
    """Means over the cells of each channel, `[frames, channels, cells]` fp32."""
    last = frames.shape[1] > 1 and frames.stride(1) == 1
    # Rows are summed in the order of memory, which is three times as fast.
    x, dim = (frames.permute(0, 2, 3, 1), 1) if last else (frames, 2)
    tall, wide = (_cell_edge(x.shape[one]) for one in (dim, dim + 1))
    sums = _chunk_sums(_chunk_sums(x, dim, tall), dim + 1, wide)
    sums = sums.permute(0, 3, 1, 2) if last else sums
    return sums.flatten(2) * (1.0 / (tall * wide))


def _cell_edge(pixels: int) -> int:
    """Of an edge: at most 16 cells, of four pixels at least where that leaves eight cells."""
    return max(-(-pixels // EDGE), min(4, -(-pixels // 8)))


def _chunk_sums(x: Tensor, dim: int, size: int) -> Tensor:
    """Sums over so many neighbours; of the rest at the end, scaled up, as if it were as many.

    No matrix product: equal frames have equal sums to the bit, wherever in the batch they are.
    """
    shape = x.shape
    whole, rest = divmod(shape[dim], size)
    chunks = x.narrow(dim, 0, whole * size) if rest else x
    chunks = chunks.view(*shape[:dim], whole, size, *shape[dim + 1 :])
    sums = chunks.sum(dim=dim + 1, dtype=torch.float32)
    if not rest:
        return sums
    end = x.narrow(dim, whole * size, rest).sum(dim=dim, keepdim=True, dtype=torch.float32)
    return torch.cat([sums, end * (size / rest)], dim=dim)
