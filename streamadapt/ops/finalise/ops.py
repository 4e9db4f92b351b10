"""`finalise` as operations that PyTorch knows."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.ops.devices import on_cuda
from streamadapt.ops.finalise import native

_KERNELS = "streamadapt.ops.finalise.triton"


@torch.library.custom_op("streamadapt::finalise_", mutates_args=("mean", "var"))
def finalise_(
    sums: Tensor,
    layers: Tensor,
    layer_of_block: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    var: Tensor,
) -> None:
    """Make moments of all layers' partial sums.

    Args:
        sums: of all layers, fp32; see `apply.collect_partials`.
        layers: `[5, layers]` int64: where each layer's sums begin, its splits, positions (0: it has
            none, and gets mean 0 and variance 1), where its channels begin, and their number.
        layer_of_block: which layer each block of 32 channels belongs to, `[blocks]` int64.
        centre: that sums were taken around, `[rows, padded channels]` fp32.
        rows: the row of each frame, `[frames]` int64; None: all have the first.
        mean: becomes the frames' means, `[frames, padded channels]` float64.
        var: likewise, population variances.
    """
    native.finalise_(sums, layers, layer_of_block, centre, rows, mean, var)


@torch.library.custom_op("streamadapt::finalise_layer_", mutates_args=("mean", "var"))
def finalise_layer_(
    sums: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    splits: int,
    positions: int,
    mean: Tensor,
    var: Tensor,
) -> None:
    """Make moments of one layer's partial sums.

    Args:
        sums: `[splits, 2, frames, channels]` fp32, flat.
        centre: that they were taken around, `[rows, channels]` fp32.
        rows: the row of each frame, `[frames]` int64; None: all have the first.
        splits: pieces of a frame's positions.
        positions: of a frame.
        mean: becomes the frames' means, `[frames, channels]` float64.
        var: likewise, population variances.
    """
    native.finalise_layer_(sums, centre, rows, splits, positions, mean, var)


finalise_.register_kernel("cuda")(on_cuda(_KERNELS, native.finalise_))
finalise_layer_.register_kernel("cuda")(on_cuda(_KERNELS, native.finalise_layer_))
