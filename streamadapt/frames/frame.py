"""A frame on its way from a camera to a model."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from streamadapt.events import Rejection


@dataclass(frozen=True, eq=False, kw_only=True)
class Frame:
    """One picture of one camera.

    Attributes:
        data: as a rule uint8 `[H, W, 3]`, RGB, a NumPy array; of an array source whatever it holds.
        stream_id: the camera's name, as `StreamProcessor` takes it in `streams`.
        frame_id: number among the frames that the camera gave, from 0; one that was dropped leaves
            a gap.
        pts_seconds: camera time. It never runs backwards and has no gaps: what happened while a
            camera was away is not part of it.
        wallclock: seconds since 1970 at which it was there.
        arrived: the same on `time.monotonic`, for ages.
        is_live: from a camera, which does not wait; not from a file.
        discontinuity: it does not follow on the one before: the first one, after an outage, in
            another size, a file from its start again.
        rejection: why nothing is to be learned from it; None: it may be.
        decode_seconds: what decoding took.
    """

    data: Any
    stream_id: Hashable
    frame_id: int
    pts_seconds: float
    wallclock: float
    arrived: float
    is_live: bool
    discontinuity: bool = False
    rejection: Rejection | None = None
    decode_seconds: float = 0.0

    def __repr__(self) -> str:
        shape = "×".join(map(str, getattr(self.data, "shape", ())))
        return (
            f"Frame({self.stream_id!r}, {self.frame_id}, {shape}, {self.pts_seconds:.3f} s"
            f"{', discontinuity' if self.discontinuity else ''}"
            f"{f', {self.rejection}' if self.rejection else ''})"
        )


@dataclass(frozen=True, eq=False)
class Picture:
    """What a source gives.

    Attributes:
        data: the picture.
        pts_seconds: on the source's own clock, which may jump; None: it has none.
        corrupt: the decoder says that something was missing.
        decode_seconds: what decoding took.
    """

    data: Any
    pts_seconds: float | None = None
    corrupt: bool = False
    decode_seconds: float = 0.0
