"""`apply_collect` as operations that PyTorch knows."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.ops.apply import native
from streamadapt.ops.devices import on_cuda

_KERNELS = "streamadapt.ops.apply.triton"


@torch.library.custom_op("streamadapt::collect_partials", mutates_args=("sums",))
def collect_partials(x: Tensor, centre: Tensor, rows: Tensor | None, sums: Tensor) -> None:
    """Take the partial sums that a layer's moments are made of.

    Args:
        x: `[frames, channels, *spatial]` fp32, fp16 or bf16.
        centre: near the mean of each row, `[rows, channels]` fp32; channels lie side by side.
        rows: the row of each frame, `[frames]` int64; None: all have the first.
        sums: fp32, at least `Shape.sums` of them; becomes `[splits, 2, frames, channels]`: of
            `x - centre` and of its square.
    """
    native.collect_partials(x, centre, rows, sums)


@torch.library.custom_op("streamadapt::apply_collect_", mutates_args=("x", "sums"))
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
    """Normalise a layer's input in place, add to it, clamp it, and take its partial sums before.

    `x` becomes `clamp(x scale + shift + residual, low, high)`, computed in fp32; what is no number
    stays so.

    Args:
        x: `[frames, channels, *spatial]` fp32, fp16 or bf16.
        scale: of each row, `[rows, channels]` fp32; channels lie side by side.
        shift: likewise.
        centre: likewise; see `collect_partials`.
        rows: the row of each frame, `[frames]` int64; None: all have the first.
        residual: of `x`'s shape and dtype.
        low: least value; minus infinity: none.
        high: largest value; infinity: none.
        sums: see `collect_partials`; None: not taken.
    """
    native.apply_collect_(x, scale, shift, centre, rows, residual, low, high, sums)


@torch.library.custom_op("streamadapt::apply_collect", mutates_args=("sums",))
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
    """As `apply_collect_`, but `x` stays, and the result comes back with `x`'s strides."""
    return native.apply_collect(x, scale, shift, centre, rows, residual, low, high, sums)


@apply_collect.register_fake
def _like(x: Tensor, *others: object) -> Tensor:
    return torch.empty_like(x)


collect_partials.register_kernel("cuda")(on_cuda(_KERNELS, native.collect_partials))
apply_collect_.register_kernel("cuda")(on_cuda(_KERNELS, native.apply_collect_))
apply_collect.register_kernel("cuda")(on_cuda(_KERNELS, native.apply_collect))
