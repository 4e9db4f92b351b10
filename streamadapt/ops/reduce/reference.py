"""Weighted reduction of per-frame moments to one set of moments a row, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streamadapt.moments import Moments


@dataclass(frozen=True, eq=False)
class FrameMoments:
    """What a step observed: `mean`, `var` `[frames, channels]`; `positions` `[channels]`; float64.

    `positions` is how many values a frame has in each channel, zero where the layer was
    not executed; `layer_positions` the same once a layer, `[layers]`.
    """

    mean: Tensor
    var: Tensor
    positions: Tensor
    layer_positions: Tensor


@dataclass(frozen=True, eq=False)
class Reduced:
    """Moments `[rows, channels]`, accepted frames `[rows, 1]`, and `finite` `[frames]` (bool)."""

    moments: Moments
    frames: Tensor
    finite: Tensor


def reduce_frames(observed: FrameMoments, weights: Tensor) -> Reduced:
    """Pool the frames of each row, leaving out every frame that is not finite.

    All frames of a layer have equally many positions, so the pooled mean is the weighted mean of
    means and the pooled variance is the mean of variances plus the spread of the means.

    Args:
        observed: per-frame moments.
        weights: `[rows, frames]` float64, at least zero; a frame has weight in one row at most, so
            that no row's rounding depends on another's frames.
    """
    # A single non-finite value makes the sum non-finite; in float64 nothing else does. Zero times
    # such a sum is not zero.
    finite = (observed.mean + observed.var).sum(dim=1) * 0.0 == 0.0
    weights = weights * finite
    if weights.shape == (1, 1):  # nothing to pool; a frame that is not finite has count zero
        count = weights * observed.positions
        return Reduced(Moments(count, observed.mean, observed.var), weights, finite)
    frames = weights.sum(dim=1, keepdim=True)
    count = frames * observed.positions
    column = finite.unsqueeze(1)
    mean = torch.where(column, observed.mean, 0.0)
    var = torch.where(column, observed.var, 0.0)
    share = weights / frames.clamp(min=1e-300)
    pooled = share @ mean
    owner = (weights > 0).to(mean.dtype)
    spread = mean - owner.T @ pooled
    return Reduced(Moments(count, pooled, share @ (var + spread.square())), frames, finite)
