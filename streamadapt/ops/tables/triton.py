"""`fill_tables_` on a GPU: a program a row and block of channels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


@triton.jit
def _fill(data, source, rows, affine, eps, out, channels, data_stride, BLOCK: tl.constexpr):
    place = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    at = source
    if place > 0:
        at = data + tl.load(rows + place - 1) * data_stride
    mean = tl.load(at + c, mask=inside, other=0.0)
    var = tl.load(at + channels + c, mask=inside, other=1.0)
    weight = tl.load(affine + c, mask=inside, other=1.0)
    bias = tl.load(affine + channels + c, mask=inside, other=0.0)
    above = tl.load(eps + c, mask=inside, other=1.0)
    # Rounded as PyTorch's normalisation has it: addition, root and reciprocal one after another.
    scale = tl.div_rn(tl.full([BLOCK], 1.0, tl.float32), tl.sqrt_rn(var + above)) * weight
    precision = 1.0 / (var.to(tl.float64) + above.to(tl.float64))
    there = out + place * 4 * channels + c
    tl.store(there, scale, mask=inside)
    tl.store(there + channels, tl.fma(-mean, scale, bias), mask=inside)
    tl.store(there + 2 * channels, precision.to(tl.float32), mask=inside)
    tl.store(there + 3 * channels, mean, mask=inside)


def fill_tables_(
    data: Tensor, source: Tensor, rows: Tensor, affine: Tensor, eps: Tensor, out: Tensor
) -> None:
    """See `tables.fill_tables_`."""
    channels = source.shape[1]
    _fill[(triton.cdiv(channels, _BLOCK), len(out))](
        data, source, rows, affine, eps, out, channels, data.stride(0), BLOCK=_BLOCK, num_warps=4
    )
