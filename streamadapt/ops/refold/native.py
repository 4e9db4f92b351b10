"""`refold_` with ATen kernels: one pass over the weight, written where it is used."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("streamadapt::refold_", mutates_args=("weight", "bias"))
def refold_(
    weight: Tensor,
    bias: Tensor,
    original: Tensor,
    shift: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    dim: int = 0,
    groups: int = 1,
) -> None:
    """Write `original s` into `weight` and `beta + (shift - mean) s` into `bias`.

    `s = gamma / sqrt(var + eps)`. Scale and bias are computed in float64 and rounded once: the
    bias is a difference of numbers that may be large.

    Args:
        weight: written; of the shape, dtype and device of `original`.
        bias: written, `[channels]`.
        original: see `reference.refold`, as all that follow.
        shift: or None.
        gamma: `[channels]`.
        beta: `[channels]`.
        mean: `[channels]`.
        var: `[channels]`.
        eps: at least 0.
        dim: 0 or 1.
        groups: at least 1.
    """
    scale = (var.double() + eps).rsqrt_().mul_(gamma)
    offset = -mean.double() if shift is None else shift.double() - mean
    bias.copy_(torch.addcmul(beta.double(), offset, scale))
    wide = torch.float64 if original.dtype == torch.float64 else torch.float32
    scale = scale.to(wide)
    shape = [1] * original.dim()
    if groups == 1:
        shape[dim] = -1
    else:
        shape = [groups, 1, -1, *([1] * (original.dim() - 2))]
        original, weight = (one.unflatten(0, (groups, -1)) for one in (original, weight))
    torch.mul(original, scale.view(shape), out=weight)


@refold_.register_fake
def _nothing(
    weight: Tensor,
    bias: Tensor,
    original: Tensor,
    shift: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    dim: int = 0,
    groups: int = 1,
) -> None:
    return None
