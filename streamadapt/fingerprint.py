"""Which statistics a file belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def statistics_fingerprint(
    layers: Sequence[tuple[str, int, float]], source: NDArray[np.floating[Any]]
) -> str:
    """SHA-256 of the layers' names, widths and eps, and of the source statistics.

    Args:
        layers: `(name, channels, eps)`, in the bank's order.
        source: `[2, channels]`, means and variances, the layers one after the other.
    """
    digest = hashlib.sha256(json.dumps([list(layer) for layer in layers]).encode())
    digest.update(np.ascontiguousarray(source, dtype="<f4").tobytes())
    return digest.hexdigest()
