"""`apply_collect` with ATen kernels, for every device; in several passes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamadapt.ops.apply.reference import of_frames
from streamadapt.ops.apply.shapes import Shape, shape_of


def collect_partials(x: Tensor, centre: Tensor, rows: Tensor | None, sums: Tensor) -> None:
    """See `apply.collect_partials`."""
    shape = layout_of(x)
    room = sums[: shape.sums].view(shape.splits, 2, shape.frames, shape.channels)
    if not x.numel():
        room.zero_()
        return
    apart = (x.float() - of_frames(centre, rows, x)).flatten(2)
    for index, part in enumerate(apart.split(shape.piece, dim=2)):
        room[index, 0].copy_(part.sum(dim=2))
        room[index, 1].copy_(part.square().sum(dim=2))


def apply_collect_(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    residual: Tensor | None,
    low: float,
    high: float,
    sums: Tensor | None,
) -> None:
    """See `apply.apply_collect_`."""
    if sums is not None:
        collect_partials(x, centre, rows, sums)
    x.copy_(_applied(x, scale, shift, rows, residual, low, high))


def apply_collect(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    residual: Tensor | None,
    low: float,
    high: float,
    sums: Tensor | None,
) -> Tensor:
    """See `apply.apply_collect`."""
    if sums is not None:
        collect_partials(x, centre, rows, sums)
    return torch.empty_like(x).copy_(_applied(x, scale, shift, rows, residual, low, high))


def layout_of(x: Tensor) -> Shape:
    """The pieces of an input; of one in an order without a kernel, those of a contiguous one."""
    return shape_of(x) or Shape(
        x.shape[0], x.shape[1], math.prod(x.shape[2:]), False, x.element_size()
    )


def _applied(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: Tensor | None,
    residual: Tensor | None,
    low: float,
    high: float,
) -> Tensor:
    y = torch.addcmul(of_frames(shift, rows, x), x.float(), of_frames(scale, rows, x))
    if residual is not None:
        y += residual
    return y if (low, high) == (-math.inf, math.inf) else y.clamp_(low, high)
