"""`correct` as operations that PyTorch knows."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.ops.correct import device
from streamadapt.ops.devices import on_cuda

_KERNELS = "streamadapt.ops.correct.triton"


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
        table: of the rows, `[rows, 4, channels]` fp32; see `tables`.
        rows: the row of each frame, `[frames]` int64; None: all have the first.
        eps: the layer's.
        usual: distance that is no reason to correct anything.
        first: nothing was remembered before.
        foreign: `[frames]` float64; becomes the larger of what it was and what is found.
        out: becomes scale and shift of each frame, and its row's mean, `[frames, 3, channels]`
            fp32.
    """
    device.correct_own_(mean, var, table, rows, eps, usual, first, foreign, out)


@torch.library.custom_op("streamadapt::correct_later_", mutates_args=("out",))
def correct_later_(
    foreign: Tensor, table: Tensor, source: Tensor, rows: Tensor | None, out: Tensor
) -> None:
    """Lean frames that were found to be unlike their row to the source's statistics.

    Args:
        foreign: how far, `[frames]` float64; see `correct_own_`.
        table: of the rows, `[rows, 4, channels]` fp32; see `tables`.
        source: of the source, `[4, channels]` fp32.
        rows: the row of each frame, `[frames]` int64; None: all have the first.
        out: becomes scale and shift of each frame, and its row's mean, `[frames, 3, channels]`
            fp32.
    """
    device.correct_later_(foreign, table, source, rows, out)


correct_own_.register_kernel("cuda")(on_cuda(_KERNELS, device.correct_own_))
correct_later_.register_kernel("cuda")(on_cuda(_KERNELS, device.correct_later_))
