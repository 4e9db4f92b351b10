"""From what a user has to frames."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from threading import Condition
from typing import Any

from torch import Tensor

from streamadapt.errors import ConfigurationError
from streamadapt.frames.arrays import AppSinkSource, CaptureSource, IterableSource
from streamadapt.frames.backoff import Backoff
from streamadapt.frames.mailbox import Delivery, Policy
from streamadapt.frames.reader import CameraStatus, FrameReader
from streamadapt.frames.source import Source
from streamadapt.frames.urls import redacted
from streamadapt.frames.video import PicturesSource, VideoSource

_FPS = 25.0


def open_frames(
    source: Any,
    *,
    stream_id: Hashable | None = None,
    policy: Policy | None = None,
    max_staleness: float | None = None,
    capacity: int | None = None,
    fps: float | None = None,
    live: bool | None = None,
    loop: bool = False,
    realtime: bool = False,
    open_seconds: float = 10.0,
    read_seconds: float = 10.0,
    learn_seconds: float = 2.0,
    warm_up_frames: int = 8,
    backoff: Backoff | None = None,
    options: Mapping[str, str] | None = None,
    bell: Condition | None = None,
    on_change: Callable[[CameraStatus], None] | None = None,
) -> FrameReader:
    """Frames of a camera, a video or pictures, read ahead in a thread.

    Nothing is read yet; what is wrong with a source is said with its first frame.

    Args:
        source: a URL (RTSP, HTTP, HLS, ...), a video or picture file, a folder of pictures, a
            device (`"/dev/video0"`, or 0), an OpenCV capture or a function that makes one, a
            GStreamer `appsink`, an array or tensor `[N, ...]`, or any iterable of pictures.
        stream_id: the camera's name; by default made from the source's, without credentials.
        policy: `every` frame, or the `latest`; by default `latest` for what is live.
        max_staleness: seconds; older frames are dropped instead of handed on.
        capacity: frames that wait at most.
        fps: pictures a second, of arrays, iterables, folders and files; default: as a file says, 25
            where nothing does, or the time at which pictures come where they are live.
        live: iterables and captures: from a camera, which does not wait. URLs know.
        loop: a file begins anew at its end.
        realtime: a file is read as if it was live.
        open_seconds: within which a camera must answer.
        read_seconds: within which its next frame must come.
        learn_seconds: live frames that are later than that teach nothing.
        warm_up_frames: so many after an outage teach nothing.
        backoff: how a camera that is away is tried again.
        options: of FFmpeg, as in `{"rtsp_transport": "udp"}`.
        bell: shared by readers that are waited for together.
        on_change: called with the status when the camera comes, goes or fails.

    Returns:
        A reader: iterate over it, and close it, or use it in a `with`.

    Raises:
        ConfigurationError: an argument out of range, a wrong URL, or PyAV is not installed.

    >>> import numpy as np
    >>> pictures = np.arange(3, dtype=np.uint8).repeat(12).reshape(3, 2, 2, 3)
    >>> with open_frames(pictures, stream_id="dock-1", fps=10) as reader:
    ...     for frame in reader:
    ...         print(frame)
    Frame('dock-1', 0, 2×2×3, 0.000 s, discontinuity, black)
    Frame('dock-1', 1, 2×2×3, 0.100 s, black)
    Frame('dock-1', 2, 2×2×3, 0.200 s, black)
    """
    for name, value in (("open_seconds", open_seconds), ("read_seconds", read_seconds)):
        if not value > 0.0:
            raise ConfigurationError(f"`{name}` must be positive, got {value}.")
    if fps is not None and not fps > 0.0:
        raise ConfigurationError(f"`fps` must be positive, got {fps}.")
    if warm_up_frames < 0:
        raise ConfigurationError(f"`warm_up_frames` must not be negative, got {warm_up_frames}.")
    found, name = _source(
        source,
        fps=fps,
        live=live,
        realtime=realtime,
        open_seconds=open_seconds,
        read_seconds=read_seconds,
        options=options,
    )
    if loop and found.is_live:
        raise ConfigurationError(f"{found.name} is live: there is nothing to begin anew.")
    if policy is None:
        paced = realtime and not found.is_live
        policy = "latest" if found.is_live or paced or max_staleness is not None else "every"
    return FrameReader(
        found,
        stream_id=name if stream_id is None else stream_id,
        delivery=Delivery(policy, max_staleness, capacity, learn_seconds),
        backoff=backoff,
        warm_up_frames=warm_up_frames,
        loop=loop,
        pace=realtime,
        bell=bell,
        on_change=on_change,
    )


def _source(
    source: Any,
    *,
    fps: float | None,
    live: bool | None,
    realtime: bool,
    open_seconds: float,
    read_seconds: float,
    options: Mapping[str, str] | None,
) -> tuple[Source, str]:
    """The source, and what its stream is called."""
    if isinstance(source, bool) or source is None:
        raise ConfigurationError(f"{source!r} is no source of frames.")
    if isinstance(source, int):
        source = f"/dev/video{source}"
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        if "://" not in text and Path(text).is_dir():
            return PicturesSource(Path(text), fps=fps or _FPS), Path(text).name
        video = VideoSource(
            text,
            open_seconds=open_seconds,
            read_seconds=read_seconds,
            options=options,
            fps=fps,
            ahead=not realtime,
        )
        return video, redacted(text) if "://" in text else Path(text).stem
    if isinstance(source, Tensor) or hasattr(source, "__array__"):
        return IterableSource(source, name="array", fps=fps or _FPS, is_live=False), "array"
    if hasattr(source, "read") and hasattr(source, "isOpened"):
        camera = bool(live)
        given = CaptureSource(
            lambda: source, name="capture", fps=fps, is_live=camera, returns=False
        )
        return given, "capture"
    if hasattr(source, "emit") and hasattr(source, "get_property"):
        name = str(source.get_property("name"))
        is_live = live is not False
        return AppSinkSource(source, name=name, read_seconds=read_seconds, is_live=is_live), name
    if callable(source):
        camera = live is not False
        made = CaptureSource(source, name="capture", fps=fps, is_live=camera, returns=camera)
        return made, "capture"
    if isinstance(source, Iterable):
        rate = fps if live else fps or _FPS
        return IterableSource(source, name="frames", fps=rate, is_live=bool(live)), "frames"
    raise ConfigurationError(
        f"{type(source).__name__} is no source of frames. Give a URL, a file, a folder, a device, "
        "an OpenCV capture, a GStreamer appsink, an array, or an iterable of pictures."
    )
