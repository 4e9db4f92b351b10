"""Pictures that are in memory already, or that other code gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from streamadapt.frames.frame import Frame, Picture
from streamadapt.frames.source import SourceError, SourceLostError


class IterableSource:
    """Pictures of an array, a tensor, a list, a generator: whatever can be iterated.

    Args:
        pictures: `[N, ...]`, or an iterable of pictures or of `Frame`s. What is an iterator can be
            read once.
        name: of the source.
        fps: pictures a second of camera time; None: time stamps are those of `Frame`s, or the time
            at which pictures come.
        is_live: it comes from a camera.
    """

    def __init__(
        self, pictures: Iterable[Any], *, name: str, fps: float | None, is_live: bool
    ) -> None:
        self.name, self.is_live = name, is_live
        self._pictures, self._fps = pictures, fps
        self._once = isinstance(pictures, Iterator)
        self.returns = is_live and not self._once
        self._opened = False
        self._left: Iterator[Any] = iter(())
        self._index = 0

    def open(self) -> None:
        """Begin with the first picture."""
        if self._once and self._opened:
            raise SourceError(f"{self.name}: it has ended, and an iterator can be read only once.")
        self._left, self._index, self._opened = iter(self._pictures), 0, True

    def read(self) -> Picture | None:
        """The next picture."""
        started = time.perf_counter()
        try:
            one = next(self._left)
        except StopIteration:
            return None
        spent = time.perf_counter() - started
        index, self._index = self._index, self._index + 1
        if isinstance(one, Frame):
            return Picture(one.data, one.pts_seconds, one.rejection == "corrupt", spent)
        return Picture(one, None if self._fps is None else index / self._fps, False, spent)

    def close(self) -> None:
        """Nothing to let go of: what was handed over is its owner's."""
        self._left = iter(())


_POSITION_MILLISECONDS = 0  # cv2.CAP_PROP_POS_MSEC


class CaptureSource:
    """An OpenCV capture, as in `cv2.VideoCapture("rtsp://...")`; its BGR pictures become RGB.

    Args:
        make: returns a capture that is open.
        name: of the source.
        fps: pictures a second of camera time, of a file; None: as the capture says.
        is_live: a camera.
        returns: it is made anew when it ends.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        name: str,
        fps: float | None,
        is_live: bool,
        returns: bool,
    ) -> None:
        self.name, self.is_live, self.returns = name, is_live, returns
        self._make, self._fps, self._index = make, fps, 0
        self._capture: Any = None

    def open(self) -> None:
        """Make the capture."""
        self._capture = capture = self._make()
        self._index = 0
        if not capture.isOpened():
            kind = SourceLostError if self.is_live else SourceError
            raise kind(f"{self.name}: OpenCV cannot open it.")

    def read(self) -> Picture | None:
        """The next picture."""
        started = time.perf_counter()
        assert self._capture is not None
        there, picture = self._capture.read()
        if not there:
            return None
        if picture.ndim == 3 and picture.shape[2] == 3:
            picture = np.ascontiguousarray(picture[:, :, ::-1])
        return Picture(picture, self._seconds(), False, time.perf_counter() - started)

    def _seconds(self) -> float | None:
        """Camera time of the picture just read; a camera's is the time at which it comes."""
        index, self._index = self._index, self._index + 1
        if self.is_live:
            return None
        if self._fps is not None:
            return index / self._fps
        position = float(self._capture.get(_POSITION_MILLISECONDS)) / 1000
        return position if position > 0.0 or not index else None

    def close(self) -> None:
        """Release the capture."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


_NANOSECONDS = 1e9
_CHANNELS = {"RGB": 3, "BGR": 3, "RGBx": 4, "RGBA": 4, "BGRx": 4, "BGRA": 4, "GRAY8": 1}


class AppSinkSource:
    """An `appsink` of a GStreamer pipeline that somebody else plays.

    Its caps must be raw video of one of RGB, BGR, RGBx, RGBA, BGRx, BGRA or GRAY8: put
    `videoconvert ! video/x-raw,format=RGB` before it.

    Args:
        sink: a `GstApp.AppSink`, or an element with its `try-pull-sample` signal.
        name: of the source.
        read_seconds: within which the next sample must come.
        is_live: a camera.
    """

    returns = False  # what has ended does not play again

    def __init__(self, sink: Any, *, name: str, read_seconds: float, is_live: bool) -> None:
        self.name, self.is_live = name, is_live
        self._sink, self._limit = sink, int(read_seconds * _NANOSECONDS)

    def open(self) -> None:
        """Nothing to do: the pipeline is played by its owner."""

    def read(self) -> Picture | None:
        """The next sample."""
        sample = self._sink.emit("try-pull-sample", self._limit)
        started = time.perf_counter()
        if sample is None:
            if self._sink.get_property("eos"):
                return None
            told = f"{self.name}: no sample within {self._limit / _NANOSECONDS:g} s."
            if self.is_live:
                raise SourceLostError(told)
            raise SourceError(f"{told} Is its pipeline playing, and its file there?")
        buffer, caps = sample.get_buffer(), sample.get_caps().get_structure(0)
        form = caps.get_value("format")
        if form not in _CHANNELS:
            raise SourceError(
                f"{self.name}: its samples are {form}. Put videoconvert ! "
                "video/x-raw,format=RGB before the appsink."
            )
        size = caps.get_value("height"), caps.get_value("width")
        raw = buffer.extract_dup(0, buffer.get_size())
        stamp = None if buffer.pts > 2**63 else buffer.pts / _NANOSECONDS  # CLOCK_TIME_NONE
        picture = _unpacked(raw, form, *size)
        return Picture(picture, stamp, False, time.perf_counter() - started)

    def close(self) -> None:
        """Nothing to do: the pipeline is its owner's."""


def _unpacked(raw: bytes, form: str, height: int, width: int) -> Any:
    """RGB `[H, W, 3]` of a sample; its rows are padded to four bytes."""
    channels = _CHANNELS[form]
    stride = len(raw) // height
    rows = np.frombuffer(raw, np.uint8)[: stride * height].reshape(height, stride)
    picture = rows[:, : width * channels].reshape(height, width, channels)
    if channels == 1:
        picture = picture.repeat(3, axis=2)
    picture = picture[:, :, 2::-1] if form.startswith("BGR") else picture[:, :, :3]
    return np.array(picture, order="C")  # the sample's own bytes cannot be written
