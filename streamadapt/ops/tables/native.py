"""`fill_tables_` with ATen kernels; the specification, too."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE, SHIFT, PRECISION, CENTRE = range(4)
"""What a table holds of each channel: `y = x scale + shift`, `1 / (variance + eps)`, the mean."""


def fill_tables_(
    data: Tensor, source: Tensor, rows: Tensor, affine: Tensor, eps: Tensor, out: Tensor
) -> None:
    """See `tables.fill_tables_`; computed in float64."""
    mean = torch.cat([source[:1], data[rows, 0]]).double()
    var = torch.cat([source[1:], data[rows, 1]]).double()
    precision = 1.0 / (var + eps.double())
    scale = affine[0].double() * precision.sqrt()
    out[:, SCALE].copy_(scale)
    out[:, SHIFT].copy_(affine[1].double() - mean * scale)
    out[:, PRECISION].copy_(precision)
    out[:, CENTRE].copy_(mean)
