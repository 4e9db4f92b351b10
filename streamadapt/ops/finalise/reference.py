"""The specification of `finalise`: moments from partial sums, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(sums: Tensor, centre: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Mean and population variance from sums of `x - centre` and of its square.

    `mean = centre + S1 / n`, `var = S2 / n - (S1 / n)^2`. `S2` is rounded to fp32, so the variance
    is good to about `2^-23 (1 + (mean - centre)^2 / var)` of itself.

    Args:
        sums: `[splits, 2, frames, channels]`.
        centre: `[frames, channels]`.
        positions: of a frame.

    Returns:
        Two float64 tensors `[frames, channels]`.
    """
    first, second = sums.double().sum(dim=0)
    offset = first / positions
    var = (second / positions - offset.square()).clamp(min=0.0)
    # `clamp` would turn what is no number into one on some devices.
    return centre.double() + offset, torch.where(second == second, var, torch.nan)
