"""Weighted reduction of per-frame moments to one set of moments a row, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from streamadapt.moments import Moments

_ENOUGH_FRAMES = 4
_USUAL = 3.0  # distances up to so many medians are usual
_LARGEST = 100.0  # of one channel
_TINY = 1e-30
_FURTHEST = 1e15  # ratio of variances, and offset in standard deviations; far beyond `_LARGEST`


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

    @cached_property
    def finite(self) -> Tensor:
        """Which frames are so in every channel, `[frames]` bool."""
        # A single non-finite value makes the sum non-finite; in float64 nothing else does. Zero
        # times such a sum is not zero.
        return (self.mean + self.var).sum(dim=1) * 0.0 == 0.0


@dataclass(frozen=True, eq=False)
class Reduced:
    """Moments `[rows, channels]`, accepted frames `[rows, 1]`, and `finite` `[frames]` (bool)."""

    moments: Moments
    frames: Tensor
    finite: Tensor


def reduce_frames(observed: FrameMoments, weights: Tensor, trust: Tensor | None = None) -> Reduced:
    """Pool the frames of each row, leaving out every frame that is not finite.

    All frames of a layer have equally many positions, so the pooled mean is the weighted mean of
    means and the pooled variance is the mean of variances plus the spread of the means.

    Args:
        observed: per-frame moments.
        weights: `[rows, frames]` float64, at least zero; a frame has weight in one row at most, so
            that no row's rounding depends on another's frames.
        trust: `[frames]` float64, above zero: how much each frame counts beside the others of its
            row, see `frame_trust`; None: all alike. It does not change how many frames there were.
    """
    finite = observed.finite
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
    if trust is not None:
        share = weights * trust
        share = share / share.sum(dim=1, keepdim=True).clamp(min=1e-300)
    pooled = share @ mean
    spread = mean - _of_frames(pooled, weights)
    return Reduced(Moments(count, pooled, share @ (var + spread.square())), frames, finite)


def frame_distances(
    observed: FrameMoments,
    weights: Tensor,
    held: Moments,
    *,
    eps: Tensor,
    mean_over_model: Callable[[Tensor], Tensor],
) -> Tensor:
    """How far each frame lies from its row's statistics: location-scale distance, mean over layers.

    In fp32, because all frames and all channels take part and a weight hangs on it, no statistic.

    Args:
        observed: per-frame moments.
        weights: `[rows, frames]`, as in `reduce_frames`.
        held: the rows' statistics, `[rows, channels]` float64.
        eps: `[channels]`.
        mean_over_model: the mean over layers of channel means, `[..., 1]`.

    Returns:
        `[frames]` float64; NaN for frames that are not finite. A channel counts at most 100.
    """
    floor = (eps + _TINY).float()
    centre = _of_frames(held.mean.float(), weights)
    precision = _of_frames((held.var.float() + floor).reciprocal_(), weights)
    # Whatever leaves fp32's range becomes infinite here, and then very far.
    ratio = (observed.var.float() + floor).mul_(precision).clamp_(1 / _FURTHEST, _FURTHEST)
    offset = (observed.mean.float() - centre).mul_(precision.sqrt())
    log = ratio.log()
    apart = offset.clamp_(-_FURTHEST, _FURTHEST).square_().mul_(ratio.rsqrt_())
    apart = apart.addcmul_(log, log, value=0.5).clamp_(max=_LARGEST)
    distance = mean_over_model(torch.where(observed.positions > 0, apart, 0.0)).squeeze(-1)
    return torch.where(observed.finite, distance.double(), math.nan)


def _of_frames(per_row: Tensor, weights: Tensor) -> Tensor:
    """Each frame's row, `[frames, channels]`; `[1, channels]` where there is one row."""
    return per_row if len(per_row) == 1 else per_row.index_select(0, weights.argmax(dim=0))


def shows_outliers(frames: int) -> bool:
    """Whether so many frames can show which of them are unlike the others."""
    return frames >= _ENOUGH_FRAMES


def frame_trust(distances: Tensor, weights: Tensor) -> Tensor:
    """How much each frame counts beside the others of its row: outliers count less.

    With `d_f` the distance of a frame from its row's statistics and `m` the median of `d` over the
    row's frames, a frame counts fully up to `3 m`, from there on less, and from `6 m` on not at
    all: `2 - d_f / 3 m`, between 0 and 1. In a new world all frames are far off, and alike. Rows
    with fewer than four frames cannot tell.

    Args:
        distances: of `frame_distances`, `[frames]`.
        weights: `[rows, frames]`, as in `reduce_frames`.

    Returns:
        `[frames]` float64 in [0, 1].
    """
    present = (weights > 0) & (distances == distances)
    usual = torch.where(present, distances, math.nan).nanmedian(dim=1, keepdim=True).values
    enough = present.sum(dim=1, keepdim=True) >= _ENOUGH_FRAMES
    limit = torch.where(present & enough, _USUAL * usual, 0.0).sum(dim=0)
    trust = (2.0 - distances / limit.clamp(min=1e-150)).clamp(0.0, 1.0)
    judged = (present & enough).any(dim=0) & (trust == trust)
    return torch.where(judged, trust, 1.0)
