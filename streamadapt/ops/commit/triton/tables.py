# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Statistics of rows as what layers normalise with."""

import triton
import triton.language as tl


@triton.jit
def fill_rows(
    data,  # [*, fields, channels] f32
    source,  # [2, channels] f32
    rows,  # [rows] i64; -1: the source
    gamma,  # [channels] f32
    beta,
    eps,
    tables,  # [rows, 4, channels] f32, out
    row_stride,
    channels,
    BLOCK: tl.constexpr,
):
    """Scale, shift, `1 / (variance + eps)` and mean."""
    r = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    row = tl.load(rows + r)
    if row < 0:
        mean = tl.load(source + at, mask=inside, other=0.0)
        var = tl.load(source + channels + at, mask=inside, other=1.0)
    else:
        mean = tl.load(data + row * row_stride + at, mask=inside, other=0.0)
        var = tl.load(data + row * row_stride + channels + at, mask=inside, other=1.0)
    weight = tl.load(gamma + at, mask=inside, other=0.0)
    bias = tl.load(beta + at, mask=inside, other=0.0)
    above = tl.load(eps + at, mask=inside, other=1.0)
    # Rounded as PyTorch's normalisation has it: addition, root and reciprocal one after another.
    scale = tl.div_rn(tl.full([BLOCK], 1.0, tl.float32), tl.sqrt_rn(var + above)) * weight
    precision = 1.0 / (var.to(tl.float64) + above.to(tl.float64))
    out = tables + r * 4 * channels + at
    tl.store(out, scale, mask=inside)
    tl.store(out + channels, tl.fma(-mean, scale, bias), mask=inside)
    tl.store(out + 2 * channels, precision.to(tl.float32), mask=inside)
    tl.store(out + 3 * channels, mean, mask=inside)
