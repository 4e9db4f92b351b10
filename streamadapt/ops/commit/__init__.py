"""The commit of a step as a few kernels on the device; `triton` is imported on demand."""

from streamadapt.ops.commit.plan import BLENDING as BLENDING
from streamadapt.ops.commit.plan import MEMORY as MEMORY
from streamadapt.ops.commit.plan import MOST_FRAMES as MOST_FRAMES
from streamadapt.ops.commit.plan import RESTARTING as RESTARTING
from streamadapt.ops.commit.plan import SCALARS as SCALARS
from streamadapt.ops.commit.plan import Outcome as Outcome
from streamadapt.ops.commit.plan import Places as Places
from streamadapt.ops.commit.plan import Room as Room

__all__ = [
    "BLENDING",
    "MEMORY",
    "MOST_FRAMES",
    "RESTARTING",
    "SCALARS",
    "Outcome",
    "Places",
    "Room",
]
