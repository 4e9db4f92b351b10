"""A fleet at work: a pipeline for each group of cameras, changed while it runs."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from streamadapt.errors import ConfigurationError, StreamAdaptError, one_line
from streamadapt.frames import Backoff, CameraStatus, FrameReader, SourceError
from streamadapt.frames import open as open_frames
from streamadapt.guard import Guard
from streamadapt.pipeline.fleet import Camera, CameraMode, Fleet
from streamadapt.pipeline.kill_switch import KillSwitch
from streamadapt.pipeline.pipeline import Pipeline, PipelineStatus
from streamadapt.pipeline.result import Reading, Result
from streamadapt.pipeline.sinks import Sink
from streamadapt.processor import StreamProcessor
from streamadapt.store import FileStore

_SPARE_ROWS = 8  # for cameras that come later
_RATE_SECONDS = 2.0  # over which frames a second are counted
log = logging.getLogger("streamadapt")


@dataclass(frozen=True)
class Group:
    """Cameras that share a processor."""

    mode: CameraMode
    profile: str | None

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.mode if self.profile is None else f"{self.mode}-{Path(self.profile).stem}"


@dataclass
class _Seen:
    """What the results of a camera said last."""

    reading: Reading | None = None
    latency_seconds: float = 0.0
    frames: int = 0
    since: float = 0.0
    fps: float = 0.0

    def take(self, result: Result, frames: int, reading: Reading, now: float) -> None:
        latency = result.latency
        self.reading = reading
        self.latency_seconds = latency.queue + latency.preprocess + latency.inference
        self.latency_seconds += latency.update
        self.frames += frames
        if now - self.since >= _RATE_SECONDS:
            self.fps = self.frames / (now - self.since) if self.since else 0.0
            self.frames, self.since = 0, now


@dataclass(frozen=True)
class CameraLine:
    """One camera, for somebody who watches."""

    status: CameraStatus
    reading: Reading | None
    latency_seconds: float
    fps: float


class Operation:
    """Runs a fleet until its sources end or it is stopped.

    Args:
        fleet: what to run.
        model: makes the model; called once for each group.
        preprocess: of frames.
        sinks: made for each group, by its number.
        on_start: called with each group's processor, before its first frame; what it returns is
            closed at the end.
        on_change: called with a camera's status when it comes, goes or fails.

    Raises:
        StreamAdaptError: the model, a profile, a camera or a store cannot be used.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        model: Callable[[], nn.Module],
        preprocess: Callable[[Any], Tensor] | None,
        sinks: Callable[[int], Sequence[Sink]] = lambda _: (),
        on_start: Callable[[StreamProcessor, int], Any] = lambda *_: None,
        on_change: Callable[[CameraStatus], None] | None = None,
    ) -> None:
        self._fleet, self._model, self._preprocess = fleet, model, preprocess
        self._sinks, self._on_start, self._on_change = sinks, on_start, on_change
        self._numbers = itertools.count()
        self._working: dict[Group, _Working] = {}
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self.failures: list[str] = []
        try:
            for group, cameras in _groups(fleet.cameras).items():
                self._start(group, cameras)
        except BaseException:
            self.stop()
            self.wait()
            raise

    def start(self) -> None:
        """Begin to answer."""
        for one in self._working.values():
            one.thread.start()

    def reload(self, fleet: Fleet) -> list[str]:
        """Add, change and remove cameras as another version of the file says; others go on.

        Returns:
            What was done, in words, and what cannot be done while it runs.
        """
        told = []
        live = ("cameras", "base", "warm_up_frames", "give_up_seconds", "first_contact_seconds")
        fixed = [one.name for one in fields(Fleet) if one.name not in live]
        changed = [key for key in fixed if getattr(fleet, key) != getattr(self._fleet, key)]
        if changed:
            told.append(f"{', '.join(changed)}: changes take effect with the next start")
        before = {one.name: one for one in self._fleet.cameras}
        after = {one.name: one for one in fleet.cameras}
        kept = {key: getattr(self._fleet, key) for key in fixed}
        self._fleet = replace(fleet, **kept)
        failed = []
        for name, camera in before.items():
            if after.get(name) != camera:
                self._remove(camera)
                if name not in after:
                    told.append(f"{name}: removed")
        for name, camera in after.items():
            if before.get(name) == camera:
                continue
            try:
                self._add(camera)
            except StreamAdaptError as error:
                told.append(f"{name}: {error}")
                self.failures.append(f"{name}: {error}")
                failed.append(name)
            else:
                told.append(f"{name}: {'changed' if name in before else 'added'}")
        # A camera that could not be added is tried again with the next reload.
        there = tuple(one for one in fleet.cameras if one.name not in failed)
        self._fleet = replace(self._fleet, cameras=there or fleet.cameras)
        return told

    def stop(self) -> None:
        """End after the batches at work; may be called from a signal handler."""
        self._stopping = True
        for one in self._working.values():
            one.pipeline.stop()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether all has ended, within so many seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        for one in list(self._working.values()):
            if one.thread.is_alive():
                one.thread.join(None if end is None else max(end - time.monotonic(), 0.0))
            elif not one.thread.ident:
                one.close()
        return not any(one.thread.is_alive() for one in self._working.values())

    @property
    def statuses(self) -> list[PipelineStatus]:
        """Of each group's pipeline."""
        return [one.pipeline.status for one in self._working.values()]

    def lines(self) -> list[CameraLine]:
        """All cameras, by name."""
        lines = []
        with self._lock:
            for status in self.statuses:
                for camera in status.cameras:
                    seen = self._seen.get(str(camera.stream_id), _Seen())
                    running = camera.state == "running"
                    fps = seen.fps if running else 0.0
                    lines.append(CameraLine(camera, seen.reading, seen.latency_seconds, fps))
        return sorted(lines, key=lambda one: str(one.status.stream_id))

    # Groups ------------------------------------------------------------------------------------

    def _group(self, camera: Camera) -> Group:
        return Group(camera.mode, camera.profile or self._fleet.profile)

    def _remove(self, camera: Camera) -> None:
        working = self._working.get(self._group(camera))
        if working is not None:
            with suppress(ConfigurationError):  # it could not be added
                working.pipeline.remove(camera.name)

    def _add(self, camera: Camera) -> None:
        group = self._group(camera)
        working = self._working.get(group)
        if working is not None and working.thread.is_alive():
            self._like(working.processor, camera)
            working.pipeline.add(self._reader(camera))
            return
        self._start(group, [camera])
        self._working[group].thread.start()

    def _start(self, group: Group, cameras: Sequence[Camera]) -> None:
        fleet, number = self._fleet, next(self._numbers)
        group = replace(group, profile=group.profile or fleet.profile)
        store = None
        if fleet.state_dir is not None and group.mode == "adapt":
            store = FileStore(
                Path(fleet.state_dir) / group.name, preprocessing=str(self._preprocess or "")
            )
        readers = [self._reader(camera) for camera in cameras]
        processor = StreamProcessor(
            self._model(),
            mode=group.mode,
            profile=group.profile,
            max_streams=fleet.max_streams or len(cameras) + _SPARE_ROWS,
            when_full="evict",
            guard=Guard() if fleet.guard else None,
            store=store,
        )
        closing = self._on_start(processor, number)
        for camera in cameras:
            self._like(processor, camera)
        try:
            pipeline = Pipeline(
                readers,
                processor,
                self._sinks(number),
                preprocess=self._preprocess,
                max_batch=fleet.max_batch,
                max_wait=fleet.max_wait_seconds,
                kill_switch=KillSwitch(fleet.kill_file),
            )
        except BaseException:
            processor.unwrap()
            raise
        self._working[group] = working = _Working(pipeline, processor, closing)
        working.thread = threading.Thread(
            target=self._work, args=(working,), name=f"streamadapt {group.name}", daemon=True
        )

    def _like(self, processor: StreamProcessor, camera: Camera) -> None:
        if camera.like is not None and camera.name not in processor.streams:
            processor.begin_like(camera.name, like=camera.like)

    def _reader(self, camera: Camera) -> FrameReader:
        return open_frames(
            camera.address(),
            stream_id=camera.name,
            policy=camera.policy,
            max_staleness=camera.max_staleness,
            realtime=camera.realtime,
            loop=camera.loop,
            open_seconds=camera.open_seconds,
            read_seconds=camera.read_seconds,
            warm_up_frames=self._fleet.warm_up_frames,
            backoff=Backoff(
                give_up_seconds=self._fleet.give_up_seconds,
                first_contact_seconds=self._fleet.first_contact_seconds,
            ),
            on_change=self._on_change,
        )

    def _work(self, working: _Working) -> None:
        try:
            for result in working.pipeline:
                self._see(result)
        except SourceError:
            pass  # its cameras say so themselves
        except Exception as error:
            log.exception("a pipeline stopped")
            self.failures.append(one_line(error))
        finally:
            working.close()

    def _see(self, result: Result) -> None:
        now = time.monotonic()
        frames: dict[Any, int] = {}
        for frame in result.frames:
            frames[frame.stream_id] = frames.get(frame.stream_id, 0) + 1
        with self._lock:
            for stream, count in frames.items():
                seen = self._seen.setdefault(str(stream), _Seen())
                seen.take(result, count, result.readings[stream], now)


class _Working:
    thread: threading.Thread

    def __init__(self, pipeline: Pipeline, processor: StreamProcessor, closing: Any) -> None:
        self.pipeline, self.processor, self._closing = pipeline, processor, closing
        self._closed = False

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.pipeline.close()
        if self._closing is not None:
            self._closing.close()
        self.processor.unwrap()


def _groups(cameras: Sequence[Camera]) -> dict[Group, list[Camera]]:
    groups: dict[Group, list[Camera]] = {}
    for camera in cameras:
        groups.setdefault(Group(camera.mode, camera.profile), []).append(camera)
    return groups
