"""Normalise a frame that is unlike its row with more of its own statistics."""

from streamadapt.ops.correct.native import frame_distance as frame_distance
from streamadapt.ops.correct.native import frame_share as frame_share
from streamadapt.ops.correct.native import lean as lean

__all__ = ["frame_distance", "frame_share", "lean"]
