"""Moments as a journal stores them: plain fp32, or half precision in units of the source."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamadapt.journal.format import Header

_TINY = 1e-30  # keeps the units defined where eps and the source's variance are both zero
_LARGEST_HALF = 65504.0


def pack(moments: NDArray[np.float32], header: Header) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and variance `[R, C]` as they are stored."""
    mean, var = moments[:, 0], moments[:, 1]
    if header.precision == "single":
        return mean.astype("<f4"), var.astype("<f4")
    centre, scale, eps = _units(header)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        deviations = (mean - centre) / np.sqrt(scale)
        ratio = np.log((var + eps) / scale)
        return (
            np.clip(deviations, -_LARGEST_HALF, _LARGEST_HALF).astype("<f2"),
            ratio.astype("<f2"),
        )


def unpack(raw: NDArray[Any], header: Header) -> NDArray[np.float32]:
    """Moments `[R, 2, C]` from what is stored, `[2, R, C]`."""
    if header.precision == "single":
        return raw.swapaxes(0, 1).astype(np.float32)
    centre, scale, eps = _units(header)
    wide = raw.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = centre + wide[0] * np.sqrt(scale)
        var = np.maximum(np.exp(wide[1]) * scale - eps, 0.0)
        return np.stack([mean, var], axis=1).astype(np.float32)


def _units(header: Header) -> tuple[NDArray[np.float64], ...]:
    """The source's mean, its variance with eps, and eps: `[C]`."""
    mean, var = header.source.astype(np.float64)
    eps = header.eps()
    return mean, np.maximum(var + eps, _TINY), eps
