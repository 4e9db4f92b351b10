"""Frames to rows."""

from streamadapt.ops.reduce.reference import FrameMoments as FrameMoments
from streamadapt.ops.reduce.reference import Reduced as Reduced
from streamadapt.ops.reduce.reference import frame_distances as frame_distances
from streamadapt.ops.reduce.reference import frame_trust as frame_trust
from streamadapt.ops.reduce.reference import reduce_frames as reduce_frames
from streamadapt.ops.reduce.reference import shows_outliers as shows_outliers

__all__ = [
    "FrameMoments",
    "Reduced",
    "frame_distances",
    "frame_trust",
    "reduce_frames",
    "shows_outliers",
]
