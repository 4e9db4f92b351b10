"""The distance of a stream from the source, as a value."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Drift:
    """How far a stream lies from the source, and from what is usual in it.

    Distances are location-scale distances, mean over a layer's channels: effect sizes, 0 on the
    source. What was seen is looked at four times a second at most; its values are missing until
    then, and for a processor that does not update.

    Attributes:
        stream: which stream.
        layers: of the statistics in use, by layer.
        overall: mean of `layers`.
        observed: of the frames seen last, by layer; NaN for layers that did not run.
        observed_deviations: of their logarithm, by layer, in standard deviations from what was
            usual in the stream's last ten minutes.
        scores: mean of `observed` over the `early`, `middle` and `late` third of the layers, and
            over the `model`.
        deviations: of the thirds' scores, in standard deviations of the stream's own reference;
            missing while there is none.
        calibrated: whether that reference is long enough for false alarms to be as rare as was
            asked for.
    """

    stream: Hashable
    layers: Mapping[str, float]
    overall: float
    observed: Mapping[str, float] = field(default_factory=dict)
    observed_deviations: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    deviations: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False

    def __repr__(self) -> str:
        return (
            f"Drift(stream={self.stream!r}, overall={self.overall:.4g}, layers={len(self.layers)})"
        )
