"""Results as a video, with what the model said drawn over it."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.frames.urls import redacted
from streamadapt.frames.video import pyav
from streamadapt.pipeline.annotating import annotated, pillow
from streamadapt.pipeline.result import Result

_TIME_BASE = Fraction(1, 60_000)  # seconds; the mpeg4 codec takes no finer one than 1/65,535
_RATE = 25


class AnnotatedVideoSink:
    """An MP4 for each camera: class, mask or boxes, a bar for its drift, a badge for its state.

    Args:
        path: `out.mp4` for one camera; with several, or without `.mp4`, a folder, in which each has
            a file of its name.
        labels: names of classes.

    Raises:
        ConfigurationError: PyAV or Pillow is not installed.
        DataError: the folder cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], *, labels: Sequence[str] = ()) -> None:
        pyav()
        pillow()
        self._path, self._labels = Path(path), tuple(labels)
        folder = self._path.parent if self._path.suffix else self._path
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be made ({error.strerror}).") from None
        self._files: dict[Hashable, _Video] = {}

    def write(self, result: Result) -> None:
        """Add the result's frames.

        Raises:
            ConfigurationError: frames are no uint8 `[H, W, 3]`.
        """
        for frame, output in result:
            picture = np.asarray(frame.data)
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ConfigurationError(
                    f"Only frames that are uint8 [H, W, 3] can be drawn over, got {picture.dtype} "
                    f"{list(picture.shape)}."
                )
            file = self._files.get(frame.stream_id)
            if file is None:
                file = self._files[frame.stream_id] = _Video(self._file_of(frame.stream_id))
            title = redacted(str(frame.stream_id))
            reading = result.readings[frame.stream_id]
            shown = annotated(picture, output, reading, labels=self._labels, title=title)
            file.add(shown, frame.pts_seconds)

    def close(self) -> None:
        """Finish the files."""
        for file in self._files.values():
            file.close()

    def _file_of(self, stream: Hashable) -> Path:
        if self._path.suffix and not self._files:
            return self._path
        name = re.sub(r"[^\w.-]+", "_", redacted(str(stream))).strip("._") or "camera"
        folder = self._path.parent if self._path.suffix else self._path
        prefix = f"{self._path.stem}-" if self._path.suffix else ""
        path, count = folder / f"{prefix}{name}.mp4", 1
        while any(path == one.path for one in self._files.values()):
            count += 1
            path = folder / f"{prefix}{name}-{count}.mp4"
        return path


class _Video:
    """One file. A picture of another size is fitted into the first one's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._av = pyav()
        try:
            self._container = self._av.open(str(path), "w", format="mp4")
        except (OSError, self._av.FFmpegError) as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}).") from None
        self._stream: Any = None
        self._last = -1

    def add(self, picture: Any, seconds: float) -> None:
        height, width = picture.shape[:2]
        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=_RATE)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = _TIME_BASE
            if codec == "libx264":
                self._stream.options = {"preset": "veryfast", "crf": "23"}
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
        self._last = max(round(seconds / _TIME_BASE), self._last + 1)
        frame.pts, frame.time_base = self._last, _TIME_BASE
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
