"""Frames to rows."""

from streamadapt.ops.reduce.reference import FrameMoments as FrameMoments
from streamadapt.ops.reduce.reference import Reduced as Reduced
from streamadapt.ops.reduce.reference import reduce_frames as reduce_frames

__all__ = ["FrameMoments", "Reduced", "reduce_frames"]
