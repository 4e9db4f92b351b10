"""`fill_tables_` as an operation that PyTorch knows."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.ops.devices import on_cuda
from streamadapt.ops.tables import native


@torch.library.custom_op("streamadapt::fill_tables_", mutates_args=("out",))
def fill_tables_(
    data: Tensor, source: Tensor, rows: Tensor, affine: Tensor, eps: Tensor, out: Tensor
) -> None:
    """Put statistics into the form that layers normalise with.

    All tensors but `data` are contiguous.

    Args:
        data: the bank's, `[streams, fields, padded channels]` fp32: mean and variance come first.
        source: the deployed model's, `[2, padded channels]` fp32.
        rows: of the bank, `[rows]` int64.
        affine: weights and biases of the layers, `[2, padded channels]` fp32.
        eps: theirs, `[padded channels]` fp32.
        out: becomes the tables of the source and then of the rows, `[1 + rows, 4, padded channels]`
            fp32: scale, shift, `1 / (variance + eps)`, mean.
    """
    native.fill_tables_(data, source, rows, affine, eps, out)


fill_tables_.register_kernel("cuda")(on_cuda("streamadapt.ops.tables.triton", native.fill_tables_))
