"""`correct` without the host: tables to normalise every frame with, in one launch each.

The host is not asked whether any frame is unlike its row: one that is not gets its row's scale and
shift, to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.ops.correct.reference import LARGEST_LOG_RATIO

SCALE, SHIFT, PRECISION, CENTRE = range(4)
"""What a table holds of every channel: `y = x scale + shift`, `1 / (variance + eps)`, the mean."""


@torch.library.custom_op("streamadapt::correct_own_", mutates_args=("foreign", "out"))
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
    """Lean frames of a layer that are unlike their row to their own statistics.

    See `correct.reference`. How much a frame of twice the usual distance would lean is remembered
    in `foreign`, for layers that do not look at their frames.

    Args:
        mean: of the frames, `[frames, channels]` float64.
        var: likewise.
        table: of the rows, `[rows, 4, channels]` fp32.
        rows: the row of each frame, `[frames]` int64; None: all have the first.
        eps: the layer's.
        usual: distance that is no reason to correct anything.
        first: nothing was remembered before.
        foreign: `[frames]` float64; becomes the larger of what it was and what is found.
        out: becomes scale and shift of each frame, `[frames, 2, channels]` fp32.
    """
    of_frames = table.expand(len(mean), -1, -1) if rows is None else table[rows]
    scale, shift, precision, centre = of_frames.unbind(1)
    narrow = mean.float()
    ratio = (var.float() + eps) * precision
    log = ratio.log()
    offset = narrow - centre
    apart = offset.square() * precision * ratio.rsqrt() + 0.5 * log.square()
    distance = apart.mean(dim=1, keepdim=True).double()
    weight = (1.0 - (usual / distance).square()).clamp(min=0.0)
    weight = torch.where(torch.isfinite(distance), weight, 0.0)
    found = (4.0 * weight - 3.0).clamp(min=0.0)[:, 0]
    foreign.copy_(found if first else torch.maximum(foreign, found))
    _lean(out, scale, shift, centre, mean, log, weight)


@torch.library.custom_op("streamadapt::correct_later_", mutates_args=("out",))
def correct_later_(
    foreign: Tensor, table: Tensor, source: Tensor, rows: Tensor | None, out: Tensor
) -> None:
    """Lean frames that were found to be unlike their row to the source's statistics.

    Args:
        foreign: how far, `[frames]` float64; see `correct_own_`.
        table: of the rows, `[rows, 4, channels]` fp32.
        source: of the source, `[4, channels]` fp32.
        rows: the row of each frame, `[frames]` int64; None: all have the first.
        out: becomes scale and shift of each frame, `[frames, 2, channels]` fp32.
    """
    of_frames = table.expand(len(foreign), -1, -1) if rows is None else table[rows]
    scale, shift, precision, centre = of_frames.unbind(1)
    log = (precision / source[PRECISION]).log()
    _lean(out, scale, shift, centre, source[CENTRE].double(), log, foreign.unsqueeze(1))


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


def _on_device(op: str) -> None:
    """Triton's kernels, where they can be had, are the implementation on CUDA."""


@correct_own_.register_fake
def _(mean, var, table, rows, eps, usual, first, foreign, out):  # type: ignore[no-untyped-def]
    return None


@correct_later_.register_fake
def _(foreign, table, source, rows, out):  # type: ignore[no-untyped-def]
    return None
