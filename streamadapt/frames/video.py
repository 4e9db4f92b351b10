"""Files, network cameras and USB cameras, decoded by FFmpeg through PyAV, on the CPU."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import ConfigurationError
from streamadapt.frames.frame import Picture
from streamadapt.frames.source import SourceError, SourceLostError
from streamadapt.frames.urls import kind_of, redacted

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_LONGEST_DAMAGE = 300  # frames that a loss can spoil where no key frame comes
_NEARLY = 0.98  # of a time limit
_BROKEN_ON_END = 100  # packets that cannot be decoded, in a row
_STREAMING = {"rtsp": {"rtsp_transport": "tcp"}, "rtsps": {"rtsp_transport": "tcp"}}


def pyav() -> Any:
    """The library.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise ConfigurationError(
            "Reading videos and cameras needs PyAV: pip install 'streamadapt[video]'."
        ) from None
    return av


class VideoSource:
    """One video stream.

    Args:
        url: a file, a URL, or a device such as `/dev/video0`.
        open_seconds: within which a camera must answer.
        read_seconds: within which its next frame must come.
        options: of FFmpeg, on top of what is set here.
        fps: pictures a second, in place of the time stamps of a file; None: these.
        ahead: pictures of a file are decoded on several threads, some ahead of the one that is
            asked for.

    Raises:
        ConfigurationError: a wrong URL, or PyAV is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        open_seconds: float = 10.0,
        read_seconds: float = 10.0,
        options: Mapping[str, str] | None = None,
        fps: float | None = None,
        ahead: bool = True,
    ) -> None:
        self._av = pyav()
        self._url, self._limits = url, (open_seconds, read_seconds)
        kind = kind_of(url)
        self.name = redacted(url)
        self.is_live = self.returns = kind in ("camera", "device")
        self._is_local = kind == "local"
        self._format = "v4l2" if kind == "device" else None
        scheme = url.partition("://")[0].lower() if "://" in url else ""
        self._options = {**_STREAMING.get(scheme, {}), **(options or {})}
        self._container: Any = None
        self._asked, self._fps = 0.0, None if self.is_live else fps
        self._ahead = ahead and not self.is_live
        self._pictures: Iterator[Picture] = iter(())

    def open(self) -> None:
        """Connect, or open the file, and find its video stream."""
        self._asked = time.monotonic()
        av = self._av
        path = self._url
        if path.startswith("file:"):
            path = url2pathname(urlsplit(path).path)
        if self._is_local:
            _require_file(path, self.name)
        try:
            self._container = av.open(
                path if self._is_local else self._url,
                format=self._format,
                options=self._options,
                timeout=self._limits,
            )
            streams = self._container.streams.video
            if not streams:
                raise SourceError(f"{self.name}: there is no video in it.")
            stream = streams[0]
            if stream.codec_context is None:
                raise SourceError(
                    f"{self.name}: nothing here decodes its video. Convert it, as in: "
                    "ffmpeg -i IN -c:v libx264 OUT.mp4"
                )
        except av.FFmpegError as error:
            raise self._problem(error, "opened") from None
        # One thread: many cameras share the cores, and frame threads hold frames back.
        stream.thread_type = "AUTO" if self._ahead else "SLICE"
        if not self._ahead:
            stream.codec_context.thread_count = 1
        self._pictures = self._decode(self._container, stream)

    def read(self) -> Picture | None:
        """Decode the next picture."""
        self._asked = time.monotonic()
        try:
            return next(self._pictures, None)
        except self._av.FFmpegError as error:
            raise self._problem(error, "read") from None

    def close(self) -> None:
        """Disconnect."""
        container, self._container = self._container, None
        self._pictures = iter(())
        if container is not None:
            container.close()

    def _decode(self, container: Any, stream: Any) -> Iterator[Picture]:
        """Pictures, those corrupt from the first that misses something to the next key frame."""
        broken, given, damaged = 0, 0, 0
        spent = 0.0
        for packet in container.demux(stream):
            started = time.perf_counter()
            if packet.is_corrupt:
                damaged = _LONGEST_DAMAGE
            try:
                frames = packet.decode()
            except self._av.InvalidDataError:
                broken, damaged = broken + 1, _LONGEST_DAMAGE
                if broken >= _BROKEN_ON_END:
                    told = f"{self.name}: {broken} packets on end cannot be decoded."
                    raise (SourceLostError if self.is_live else SourceError)(told) from None
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damaged = _LONGEST_DAMAGE
                elif frame.key_frame:
                    damaged = 0
                data = _rgb(frame)
                spent += time.perf_counter() - started
                seconds = frame.time if self._fps is None else given / self._fps
                yield Picture(data, seconds, damaged > 0, spent)
                broken, damaged = 0, max(damaged - 1, 0)
                given += 1
                spent, started = 0.0, time.perf_counter()
            spent += time.perf_counter() - started
        if not given and not self.is_live:
            raise SourceError(f"{self.name}: no frame in it can be decoded.")

    def _problem(self, error: Any, verb: str) -> SourceError | SourceLostError:
        """What went wrong; without FFmpeg's own text, which has the URL in it."""
        av = self._av
        words = error.strerror or type(error).__name__
        limit = self._limits[verb == "read"]
        if time.monotonic() - self._asked >= _NEARLY * limit:  # whatever FFmpeg makes of that
            words = f"no answer within {limit:g} s"
        told = f"{self.name}: cannot be {verb} ({words})."
        refused = (
            av.error.HTTPBadRequestError,
            av.error.HTTPUnauthorizedError,
            av.error.HTTPForbiddenError,
            av.error.HTTPNotFoundError,
            av.error.ProtocolNotFoundError,
            av.error.DecoderNotFoundError,
            av.error.DemuxerNotFoundError,
        )
        if not self.is_live or isinstance(error, refused):
            return SourceError(told)
        return SourceLostError(told)


def _rgb(frame: Any) -> NDArray[np.uint8]:
    """A decoded frame as `[H, W, 3]`: in FFmpeg's own memory, which lives as long as it."""
    frame = frame.reformat(format="rgb24")
    plane, height, width = frame.planes[0], frame.height, frame.width
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    picture = lines[:height, : 3 * width].reshape(height, width, 3)
    return np.ascontiguousarray(picture)  # a copy where lines are padded


class PicturesSource:
    """Picture files of a folder, in the natural order of their names.

    Args:
        folder: where they are.
        fps: pictures a second of camera time.
    """

    is_live = returns = False

    def __init__(self, folder: Path, *, fps: float) -> None:
        pyav()
        self.name = str(folder)
        self._folder, self._fps = folder, fps
        self._left: Iterator[tuple[int, Path]] = iter(())

    def open(self) -> None:
        """List the folder."""
        try:
            found = [one for one in self._folder.iterdir() if one.suffix.lower() in PICTURES]
        except OSError as error:
            raise SourceError(f"{self.name}: cannot be listed ({error.strerror}).") from None
        if not found:
            raise SourceError(f"{self.name}: there are no pictures in it.")
        self._left = iter(list(enumerate(sorted(found, key=_natural))))

    def read(self) -> Picture | None:
        """Decode the next picture."""
        index, path = next(self._left, (0, None))
        if path is None:
            return None
        source = VideoSource(str(path))
        try:
            source.open()
            picture = source.read()
        finally:
            source.close()
        if picture is None:
            raise SourceError(f"{path}: there is no picture in it.")
        return Picture(picture.data, index / self._fps, picture.corrupt, picture.decode_seconds)

    def close(self) -> None:
        """Forget what is left."""
        self._left = iter(())


def _natural(path: Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(one)) if one.isdigit() else (1, one) for one in parts if one]


def _require_file(path: str, name: str) -> None:
    file = Path(path)
    try:
        size = file.stat().st_size
    except OSError as error:
        raise SourceError(f"{name}: {(error.strerror or 'cannot be read').lower()}.") from None
    if file.is_file() and not size:
        raise SourceError(f"{name}: the file is empty.")
