"""`correct` without the host, with ATen kernels: tables to normalise every frame with.

The host is not asked whether any frame is unlike its row: one that is not gets its row's scale and
shift, to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.ops.correct.reference import LARGEST_LOG_RATIO
from streamadapt.ops.tables import CENTRE, PRECISION


def correct_own_(
    mean: Tensor,
    var: Tensor,
    table: Tensor,
    rows: Tensor | None,
    eps: float,
    usual: float,
    first: bool,
    foreign: Tensor,
    out: Tensor,
) -> None:
    """See `correct.correct_own_`."""
    scale, shift, precision, centre = _of_frames(table, rows, len(mean))
    narrow = mean.float()
    ratio = (var.float() + eps) * precision
    log = ratio.log()
    apart = (narrow - centre).square() * precision * ratio.rsqrt() + 0.5 * log.square()
    distance = apart.mean(dim=1, keepdim=True).double()
    weight = (1.0 - (usual / distance).square()).clamp(min=0.0)
    weight = torch.where(torch.isfinite(distance), weight, 0.0)
    # `1 - (2 usual / D)^2`: the same weight for twice the distance.
    found = (4.0 * weight - 3.0).clamp(min=0.0)[:, 0]
    foreign.copy_(found if first else torch.maximum(foreign, found))
    _lean(out, scale, shift, centre, mean, log, weight)


def correct_later_(
    foreign: Tensor, table: Tensor, source: Tensor, rows: Tensor | None, out: Tensor
) -> None:
    """See `correct.correct_later_`."""
    scale, shift, precision, centre = _of_frames(table, rows, len(foreign))
    log = (precision / source[PRECISION]).log()
    _lean(out, scale, shift, centre, source[CENTRE].double(), log, foreign.unsqueeze(1))


def _of_frames(table: Tensor, rows: Tensor | None, frames: int) -> tuple[Tensor, ...]:
    each = table[:1].expand(frames, -1, -1) if rows is None else table[rows]
    return each.unbind(1)


def _lean(
    out: Tensor,
    scale: Tensor,
    shift: Tensor,
    centre: Tensor,
    mean: Tensor,
    log: Tensor,
    weight: Tensor,
) -> None:
    """`centre` to `mean`, and the logarithm of the variance by `log`, by `weight`."""
    moves = weight > 0
    log = log.double().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    leant = scale.double() * torch.where(moves, -0.5 * weight * log, 0.0).exp()
    wide = centre.double()
    moved = wide + torch.where(moves, weight * (mean - wide), 0.0)
    out[:, 0].copy_(leant)
    out[:, 1].copy_(torch.where(moves, shift + wide * scale - moved * leant, shift))
    out[:, 2].copy_(centre)
