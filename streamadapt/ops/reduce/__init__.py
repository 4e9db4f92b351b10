"""Frames to rows."""

from streamadapt.ops.reduce.reference import ENOUGH_FRAMES as ENOUGH_FRAMES
from streamadapt.ops.reduce.reference import FrameMoments as FrameMoments
from streamadapt.ops.reduce.reference import Reduced as Reduced
from streamadapt.ops.reduce.reference import frame_distances as frame_distances
from streamadapt.ops.reduce.reference import frame_trust as frame_trust
from streamadapt.ops.reduce.reference import reduce_frames as reduce_frames

__all__ = [
    "ENOUGH_FRAMES",
    "FrameMoments",
    "Reduced",
    "frame_distances",
    "frame_trust",
    "reduce_frames",
]
