"""Frames that a camera did not take: found on the host, where they come in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamadapt.events import Rejection

_SAMPLES = 512  # bytes compared before the whole is


class Screen:
    """Tells which frames nothing is to be learned from; they are answered all the same.

    =========  ====================================================================================
    corrupt    the decoder says that something of it was missing
    reconnect  among the first frames after an outage: exposure and encoder have yet to settle
    black      every byte is the same, as clients fill in on a loss of signal
    frozen     the picture before, to the byte, as clients repeat it on a loss of signal. A scene
               without noise that stands still for ever teaches nothing by being shown again.
    =========  ====================================================================================

    The guard judges what is in a picture; this judges what no camera takes.

    Args:
        warm_up_frames: after an outage.
    """

    def __init__(self, *, warm_up_frames: int) -> None:
        self._warm_up_frames = warm_up_frames
        self._warming = 0
        self._before: NDArray[Any] | None = None

    def interrupted(self) -> None:
        """There was an outage."""
        self._warming = self._warm_up_frames

    def judge(self, data: Any, *, corrupt: bool) -> Rejection | None:
        """A frame, in the order in which they come."""
        warming, self._warming = self._warming, max(self._warming - 1, 0)
        substitute = self._substitute(data)
        if corrupt:
            return "corrupt"
        if substitute is not None:
            return substitute
        return "reconnect" if warming else None

    def _substitute(self, data: Any) -> Rejection | None:
        if not isinstance(data, np.ndarray) or not data.size:
            return None
        step = max(data.size // _SAMPLES, 1) | 1  # odd, so that all channels are among them
        flat = data.reshape(-1)
        some = flat[::step]
        if (some == some[0]).all() and (flat == flat[0]).all():
            return "black"
        before, self._before = self._before, data
        if before is None or before.shape != data.shape or before.dtype != data.dtype:
            return None
        other = before.reshape(-1)
        if (some == other[::step]).all() and (flat == other).all():
            return "frozen"
        return None
