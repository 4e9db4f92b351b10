"""Normalise a frame that is unlike its row with more of its own statistics."""

from streamadapt.ops.correct.native import frame_share as frame_share
from streamadapt.ops.correct.native import lean as lean

__all__ = ["frame_share", "lean"]
