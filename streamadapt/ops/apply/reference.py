"""The specification of `apply_collect`, in float64."""

from __future__ import annotations

from torch import Tensor


def of_frames(table: Tensor, rows: Tensor | None, x: Tensor) -> Tensor:
    """Values of each frame's row, `[frames, channels]`, with as many dimensions as `x`."""
    each = table[:1].expand(x.shape[0], -1) if rows is None else table[rows]
    return each.reshape(*each.shape, *[1] * (x.dim() - 2))


def apply(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: Tensor | None,
    residual: Tensor | None,
    low: float,
    high: float,
) -> Tensor:
    """`clamp(x scale + shift + residual, low, high)`, in float64; what is no number stays so."""
    y = x.double() * of_frames(scale, rows, x).double() + of_frames(shift, rows, x).double()
    if residual is not None:
        y = y + residual.double()
    return y.clamp(low, high)


def collect(x: Tensor, centre: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of `x - centre` and of its square over positions, `[frames, channels]` float64."""
    apart = (x.double() - of_frames(centre, rows, x).double()).flatten(2)
    return apart.sum(dim=2), apart.square().sum(dim=2)
