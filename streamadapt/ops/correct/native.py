"""`correct` with ATen kernels: few of them, because they run once a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.moments import Moments
from streamadapt.ops.collect import StagedMoments
from streamadapt.ops.correct.reference import LARGEST_LOG_RATIO


def frame_distance(
    staged: StagedMoments, *, mean: Tensor, precision: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """How far each frame lies from its row.

    Args:
        staged: of each frame, `[frames, channels]`.
        mean: of each frame's row, broadcasts to `[frames, channels]`, fp32.
        precision: `1 / (variance + eps)` of each frame's row, likewise.
        eps: the layer's, fp32.

    Returns:
        The location-scale distance, mean over channels, `[frames, 1]` float64, and the logarithm
        of the frames' variances over the row's, `[frames, channels]` fp32, as precise as the
        moments of the frames.
    """
    ratio = staged.inverse.square().reciprocal_().add_(eps).mul_(precision)
    log = ratio.log()
    apart = (staged.mean - mean).square_().mul_(precision).mul_(ratio.rsqrt_())
    distance = apart.addcmul_(log, log, value=0.5).mean(dim=1, keepdim=True)
    return distance.double(), log


def frame_share(distance: Tensor, *, usual: float) -> Tensor:
    """How much of its own statistics each frame is normalised with, `[frames, 1]`.

    Args:
        distance: of `frame_distance`.
        usual: distance that is no reason to correct anything.
    """
    weight = (1.0 - (usual / distance).square_()).clamp_(min=0.0)
    return torch.where(torch.isfinite(distance), weight, 0.0)


def lean(
    row: Moments, held: Moments, eps: Tensor, *, mean: Tensor, log: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and shift that normalise inputs with statistics between the row's and others.

    Args:
        row: statistics of each frame's row.
        held: statistics that the layer itself holds.
        eps: the layers'.
        mean: means to lean to.
        log: logarithm of the variances to lean to, over the row's; clipped to
            `LARGEST_LOG_RATIO` either way.
        weight: how far, `[frames, 1]`; with zero the result is the row's to the bit.

    Returns:
        `scale` and `shift`, `[frames, channels]` fp32, as of `remap_coefficients`.
    """
    moves = weight > 0
    log = log.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    factor = torch.where(moves, weight * log, 0.0).mul_(-0.5).exp_()
    scale = ((held.var + eps) / (row.var + eps)).sqrt() * factor
    centre = row.mean + torch.where(moves, weight * (mean - row.mean), 0.0)
    shift = held.mean - centre * scale
    return scale.float(), shift.float()
