"""The affine map that makes a layer with source statistics act as if it had others."""

from __future__ import annotations

from torch import Tensor

from streamadapt.moments import Moments


def remap_coefficients(wanted: Moments, source: Moments, eps: Tensor) -> tuple[Tensor, Tensor]:
    """`scale`, `shift` with `BN_source(scale x + shift) = BN_wanted(x)`, fp32.

    `(x - m) / sqrt(v + eps) = (x' - m_s) / sqrt(v_s + eps)` gives
    `x' = (x - m) sqrt((v_s + eps) / (v + eps)) + m_s`. Computed in float64, because the shift is
    a difference of two numbers that may be large.

    Args:
        wanted: statistics to normalise with, `[rows, channels]` float64.
        source: statistics the layer holds, `[channels]` float64.
        eps: the layers' eps, `[channels]` float64.
    """
    scale = ((source.var + eps) / (wanted.var + eps)).sqrt()
    shift = source.mean - wanted.mean * scale
    return scale.float(), shift.float()
