"""How far what was seen lies from the source, layer by layer and by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamadapt.layout import BankLayout
from streamadapt.moments import Moments, location_scale_distance

DEPTHS: tuple[Literal["early", "middle", "late"], ...] = ("early", "middle", "late")
"""Thirds of a model's layers. Shallow layers show the domain, deep ones the content."""

_FURTHEST = 100.0  # of one channel
_TINY = 1e-150  # two constant channels are no distance apart, not 0 / 0


def observed_distances(
    observed: Moments, source: Moments, frames: Tensor, positions: Tensor, layout: BankLayout
) -> Tensor:
    """Location-scale distance of what was seen from the source, mean over each layer's channels.

    An effect size: 0 where nothing differs, whatever the number of positions.

    Args:
        observed: of the accepted frames of each row, `[rows, channels]` float64.
        source: `[channels]` or `[1, channels]`.
        frames: `[rows, 1]`, accepted frames.
        positions: `[layers]`, of one frame; zero where a layer was not executed.
        layout: of the channels.

    Returns:
        `[rows, layers]` float64; NaN where nothing was seen. A channel counts at most 100.
    """
    apart = location_scale_distance(observed, source, layout.eps + _TINY)
    mean = layout.mean_per_layer(apart.clamp_(max=_FURTHEST))
    return torch.where((frames > 0) & (positions > 0), mean, torch.nan)


def thirds(layers: int) -> dict[str, slice]:
    """Which of so many layers are early, middle and late; those without a layer are left out."""
    edges = [-(-layers * part // len(DEPTHS)) for part in range(len(DEPTHS) + 1)]
    spans = {name: slice(edges[k], edges[k + 1]) for k, name in enumerate(DEPTHS)}
    return {name: span for name, span in spans.items() if span.start < span.stop}


def by_depth(layers: NDArray[np.float64] | Sequence[float]) -> dict[str, float]:
    """Means over the layers of each third, and over all of them as `model`.

    Layers that are NaN are left out, and so is a third that has no other.
    """
    values = np.asarray(layers, dtype=np.float64)
    spans = {**thirds(len(values)), "model": slice(None)}
    known = {name: values[span][np.isfinite(values[span])] for name, span in spans.items()}
    return {name: float(some.mean()) for name, some in known.items() if len(some)}
