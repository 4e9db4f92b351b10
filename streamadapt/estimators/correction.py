"""Frames that are unlike their stream, normalised with more of their own statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from streamadapt.errors import ConfigurationError
from streamadapt.layout import layers_up_to
from streamadapt.profile import SourceProfile

_FIRST_LEVEL, _LAST_LEVEL = 0.8, 0.1  # uncalibrated: of the first and the last corrected layer
_LEAST_LEVEL = 0.01


class FrameCorrection:
    """Lets single frames bring their own statistics into the first layers.

    The shift of a new world sits in the first layers, and there a single frame has thousands of
    positions: enough to show most of it. So a frame that lies further from its row's statistics
    than frames of one world do is normalised with a mixture of the row's and its own, the more the
    further it is, layer by layer in the first part of the model. In the layers after it, a frame
    that was twice as far off as that in one of them is normalised with a mixture of the row's and
    the source's. No frame has a part in another one's output, and nothing
    is remembered: the first frames of a new world are answered better, and so are frames of several
    worlds in one stream, which no common statistics fit.

    The weight of a frame's own statistics is `max(0, 1 - (usual level / D)^2)`, `D` its location-
    scale distance from the row, mean over the layer's channels; the source's weight in the later
    layers is the largest `max(0, 1 - (2 usual level / D)^2)` of the first ones. Instance-aware
    batch normalisation (NOTE, arXiv 2208.05117) corrects frames in a like manner, in all layers of
    a model that was trained with it; here the model stays as it is.

    Args:
        depth: part of the layers in which frames bring their own, counted by layers.
        usual: so many times the usual distance are no reason to correct anything.
        levels: usual distance of a frame of the same world in each of these layers; None: 0.8 in
            the first to 0.1 in the last, geometrically, until a profile brings its own.

    Raises:
        ConfigurationError: an argument out of range.
    """

    def __init__(
        self,
        *,
        depth: float = 1 / 3,
        usual: float = 3.5,
        levels: Sequence[float] | None = None,
    ) -> None:
        if not 0.0 < depth <= 1.0:
            raise ConfigurationError(f"`depth` must be above 0 and at most 1, got {depth}.")
        if not (usual > 0.0 and math.isfinite(usual)):
            raise ConfigurationError(f"`usual` must be positive and finite, got {usual}.")
        if levels is not None and not all(one > 0.0 and math.isfinite(one) for one in levels):
            raise ConfigurationError(f"`levels` must be positive and finite, got {levels}.")
        self.depth = float(depth)
        self.usual = float(usual)
        self.levels = None if levels is None else tuple(float(one) for one in levels)

    def thresholds(self, layers: int) -> tuple[float, ...]:
        """Distance up to which nothing is corrected, of each of the first layers of so many."""
        count = self._count(layers)
        levels = self.levels
        if levels is None:
            ratio = _LAST_LEVEL / _FIRST_LEVEL
            last = max(self.depth * (layers - 1), 1.0)
            levels = tuple(_FIRST_LEVEL * ratio ** (k / last) for k in range(count))
        return tuple(self.usual * one for one in levels[:count])

    def calibrated(self, profile: SourceProfile) -> FrameCorrection:
        """The same, with levels from a profile, unless they were given.

        So that no more than one frame of the source in ten is corrected.
        """
        if self.levels is not None:
            return self
        count = self._count(len(profile.layers))
        wider = max(float(profile.frame_spread[count - 1]) / self.usual, 1.0)
        found = profile.frame_distance[:count]
        levels = [max(wider * float(one), _LEAST_LEVEL) for one in found]
        return FrameCorrection(depth=self.depth, usual=self.usual, levels=levels)

    def _count(self, layers: int) -> int:
        """How many of the first layers."""
        return layers_up_to(self.depth, layers)

    def __repr__(self) -> str:
        return (
            f"FrameCorrection(depth={self.depth:.4g}, usual={self.usual}, "
            f"levels={self.levels and tuple(round(one, 4) for one in self.levels)})"
        )
