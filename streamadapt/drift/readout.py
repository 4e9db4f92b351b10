"""The distance of a stream's statistics from the source, as a value."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Drift:
    """How far a stream's statistics lie from the source.

    Attributes:
        stream: which stream.
        layers: location-scale distance of each layer, averaged over its channels; 0 on the source.
        overall: mean over layers.
    """

    stream: Hashable
    layers: Mapping[str, float]
    overall: float

    def __repr__(self) -> str:
        return (
            f"Drift(stream={self.stream!r}, overall={self.overall:.4g}, layers={len(self.layers)})"
        )
