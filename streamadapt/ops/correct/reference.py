"""The specification of `correct`, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamadapt.moments import Moments, location_scale_distance

LARGEST_LOG_RATIO = 7.0
"""Of the variances of a frame and of its row; beyond it, the frame's counts as that far off."""


def correct(frame: Moments, row: Moments, *, usual: float, eps: Tensor) -> tuple[Moments, Tensor]:
    """Statistics to normalise single frames with.

    `w = max(0, 1 - (usual / D)^2)`, `D` the location-scale distance of the frame from its row, mean
    over channels. The mean moves from the row's to the frame's own by `w`; so does the logarithm of
    the variance. A frame within `usual` of its row has `w = 0` and the row's statistics to the bit,
    and so has a frame that is not finite. A positive-part James-Stein weight, with the usual
    distance as its noise, and the square that makes it decide more sharply.

    Args:
        frame: of each frame, `[frames, channels]`.
        row: of each frame's row, broadcasts against `frame`.
        usual: distance that is no reason to correct anything.
        eps: the layer's.

    Returns:
        The statistics, and `w`, `[frames, 1]`.
    """
    distance = location_scale_distance(frame, row, eps).mean(dim=1, keepdim=True)
    finite = torch.isfinite(distance)
    weight = torch.where(finite, (1.0 - (usual / distance).square()).clamp(min=0.0), 0.0)
    log = ((frame.var + eps) / (row.var + eps)).log().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    mean = torch.where(weight > 0, row.mean + weight * (frame.mean - row.mean), row.mean)
    var = torch.where(weight > 0, (row.var + eps) * (weight * log).exp() - eps, row.var)
    return Moments(torch.full_like(mean, math.nan), mean, var), weight
