"""Normalise a frame that is unlike its row with more of its own statistics."""

from streamadapt.ops.correct.native import frame_distance as frame_distance
from streamadapt.ops.correct.native import frame_share as frame_share
from streamadapt.ops.correct.native import lean as lean
from streamadapt.ops.correct.ops import correct_later_ as correct_later_
from streamadapt.ops.correct.ops import correct_own_ as correct_own_

__all__ = ["correct_later_", "correct_own_", "frame_distance", "frame_share", "lean"]
