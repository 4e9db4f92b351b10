"""Cameras to results: frames, batches, a processor, sinks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Callable,
    Generator,
    Hashable,
    Iterable,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition
from typing import Any

import torch
from torch import Tensor

from streamadapt import frames as fr
from streamadapt.closing import Closing
from streamadapt.errors import ConfigurationError, StreamError, one_line
from streamadapt.events import Event, StepCompleted
from streamadapt.frames import CameraStatus, Frame, FrameReader, redacted
from streamadapt.parts import some_frames
from streamadapt.pipeline.batcher import Batcher
from streamadapt.pipeline.kill_switch import KillSwitch
from streamadapt.pipeline.result import Action, Latency, Reading, Result
from streamadapt.pipeline.sinks import Sink
from streamadapt.processor import StreamProcessor

_CLOSE_SECONDS = 0.9  # that cameras which connect are waited for
log = logging.getLogger("streamadapt")


@dataclass(frozen=True)
class PipelineStatus:
    """A pipeline's books at one moment.

    Attributes:
        cameras: what each reader does; removed ones are not among them.
        received: frames taken from sources, those of removed cameras included.
        answered: frames in results.
        dropped: frames that were not handed on, or could not be prepared.
        unprepared: frames that could not be prepared for the model, by camera; the first of each
            was logged.
        in_flight: frames that wait, or are in the batch at work.
        sink_errors: writes that raised, by sink; each was logged.
        killed: the kill switch is on.
    """

    cameras: tuple[CameraStatus, ...]
    received: int
    answered: int
    dropped: int
    in_flight: int
    unprepared: dict[Hashable, int]
    sink_errors: dict[str, int]
    killed: bool


class Pipeline(Closing):
    """Runs a processor on cameras: iterate over it for results, or `run()` it for its sinks.

    Each camera is read in a thread of its own and has a row of statistics of its own; frames of
    several go through the model in one batch.

    Args:
        sources: readers from `sa.frames.open`, or whatever that opens.
        processor: with rows for as many cameras as there are, or `when_full="evict"`.
        sinks: what takes the results.
        preprocess: from a frame's `data` to what the model takes for it, a `Preprocess` or a
            function that returns a tensor `[C, H, W]`; None: `data` is such a tensor.
        max_batch: frames of a batch at most.
        max_wait: seconds that the first frame of a batch waits for others at most.
        pad_to: batches are filled up to the next of these sizes, with frames that count nothing,
            for captured steps; none: they are as they come.
        kill_switch: looked at before each batch; by default the environment variable's.
        transform: from a batch `[B, C, H, W]` on the host to the model's first argument; by default
            it is moved to the model's device and layout.

    Raises:
        ConfigurationError: an argument out of range, two cameras of one name, a wrong source.
    """

    def __init__(
        self,
        sources: FrameReader | Sequence[Any] | Any,
        processor: StreamProcessor,
        sinks: Sequence[Sink] = (),
        *,
        preprocess: Callable[[Any], Tensor] | None = None,
        max_batch: int = 8,
        max_wait: float = 0.01,
        pad_to: Sequence[int] = (),
        kill_switch: KillSwitch | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self._bell = Condition()
        self._batcher = Batcher(
            bell=self._bell,
            max_batch=max_batch,
            max_wait=max_wait,
            max_cameras=processor.max_streams,
        )
        self._processor, self._sinks = processor, tuple(sinks)
        self._preprocess, self._pad_to = preprocess or _as_it_is, tuple(sorted(pad_to))
        if self._pad_to and (self._pad_to[0] < 1 or self._pad_to[-1] < max_batch):
            raise ConfigurationError(
                f"`pad_to` must end with `max_batch` or more, got {list(pad_to)} and {max_batch}."
            )
        self._kill_switch = kill_switch or KillSwitch()
        self._transform = transform or _Transform(processor)
        self._readers: dict[Hashable, FrameReader] = {}
        self._gone: Counter[str] = Counter()
        self._answered = 0
        self._in_batch = 0
        self._unprepared: Counter[Hashable] = Counter()
        self._sink_errors: Counter[str] = Counter()
        self.last_sink_error: str | None = None
        self._step: StepCompleted | None = None
        self._unsubscribe = processor.subscribe(self._heard)
        self._closed = False
        try:
            for source in _listed(sources):
                self.add(source)
            if not self._readers:
                raise ConfigurationError("A pipeline needs a source of frames.")
        except BaseException:
            self._unsubscribe()
            raise

    # Cameras ----------------------------------------------------------------------------------

    def add(self, source: Any, **options: Any) -> FrameReader:
        """Take in one more camera; the others go on meanwhile.

        Args:
            source: a reader that has not started, or what `sa.frames.open` opens.
            **options: for `sa.frames.open`.

        Raises:
            ConfigurationError: there is one of that name, or the source is wrong.
        """
        reader = source if isinstance(source, FrameReader) else fr.open(source, **options)
        processor = self._processor
        rows = {*processor.streams, *self._readers, reader.stream_id}
        if len(rows) > processor.max_streams and processor.when_full == "error":
            raise ConfigurationError(
                f"There is no row of statistics for camera {reader.stream_id!r}: the processor has "
                f'{processor.max_streams}. Give it `max_streams=`, or `when_full="evict"`.'
            )
        reader.share(self._bell)
        self._batcher.add(reader)
        with self._bell:
            self._readers[reader.stream_id] = reader
        return reader.start()

    def remove(self, stream_id: Hashable) -> None:
        """Stop reading a camera; its statistics stay with the processor.

        Raises:
            ConfigurationError: there is none of that name.
        """
        reader = self._batcher.remove(stream_id)
        if reader is None:
            raise ConfigurationError(f"There is no camera called {stream_id!r}.")
        reader.close()
        with self._bell:
            counts = reader.status.counts
            self._gone["received"] += counts.received
            self._gone["dropped"] += counts.dropped
            del self._readers[stream_id]

    @property
    def status(self) -> PipelineStatus:
        """Its books; `received == answered + dropped + in_flight`, at every moment."""
        with self._bell:
            cameras = tuple(reader.status for reader in self._readers.values())
            counts = [one.counts for one in cameras]
            return PipelineStatus(
                cameras,
                self._gone["received"] + sum(one.received for one in counts),
                self._answered,
                self._gone["dropped"]
                + sum(one.dropped for one in counts)
                + sum(self._unprepared.values()),
                self._in_batch + sum(one.waiting for one in counts),
                dict(self._unprepared),
                dict(self._sink_errors),
                self._kill_switch.on,
            )

    # Results -----------------------------------------------------------------------------------

    def __iter__(self) -> Generator[Result, None, None]:
        """Results until all sources have ended, or until it is closed.

        Raises:
            SourceError: no source could be used.
        """
        try:
            while (frames := self._batcher.next(taken=self._took)) is not None:
                for group in self._groups(frames):
                    result = self._answer(*group)
                    with self._bell:
                        self._answered += len(result.frames)
                        self._in_batch -= len(result.frames)
                    self._write(result)
                    yield result
            self._require_some()
        finally:
            self.close()

    def run(self) -> PipelineStatus:
        """Answer everything, for the sinks; its books at the end.

        Raises:
            SourceError: no source could be used.
        """
        for _ in self:
            pass
        return self.status

    async def __aiter__(self) -> AsyncIterator[Result]:
        """The same without holding up the event loop: the work is done in a thread."""
        loop, results = asyncio.get_running_loop(), self.__iter__()
        with ThreadPoolExecutor(1, thread_name_prefix="streamadapt pipeline") as thread:
            try:
                while True:
                    found = await loop.run_in_executor(thread, next, results, None)
                    if found is None:
                        return
                    yield found
            finally:
                self.stop()
                await loop.run_in_executor(thread, results.close)

    def stop(self) -> None:
        """End after the batch at work; may be called from another thread or a signal handler."""
        self._batcher.close()

    def close(self) -> None:
        """Stop all cameras, close the sinks, and save what the processor has learned."""
        if self._closed:
            return
        self._closed = True
        self._batcher.close()
        readers = list(self._readers.values())
        for reader in readers:
            reader.ask_to_stop()
        end = time.monotonic() + _CLOSE_SECONDS
        for reader in readers:
            reader.close(wait_seconds=max(end - time.monotonic(), 0.0))
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                self._failed(sink, error)
        self._unsubscribe()
        if not self._processor.closed:
            self._processor.flush()

    # One batch ---------------------------------------------------------------------------------

    def _took(self, count: int) -> None:
        self._in_batch += count

    def _heard(self, event: Event) -> None:
        if isinstance(event, StepCompleted):
            self._step = event

    def _groups(self, frames: Sequence[Frame]) -> list[tuple[list[Frame], list[Tensor], float]]:
        """Frames that make one tensor, in the order in which their shapes appear."""
        groups: dict[Any, tuple[list[Frame], list[Tensor]]] = {}
        started = time.perf_counter()
        for frame in frames:
            try:
                picture = self._preprocess(frame.data)
            except Exception as error:
                if not self._answered:  # it is wrong for all of them
                    raise
                self._unprepared_one(frame, error)
                continue
            key = tuple(picture.shape), picture.dtype
            own, pictures = groups.setdefault(key, ([], []))
            own.append(frame)
            pictures.append(picture)
        spent = (time.perf_counter() - started) / len(frames)
        return [(own, pictures, spent * len(own)) for own, pictures in groups.values()]

    def _unprepared_one(self, frame: Frame, error: Exception) -> None:
        """A frame of one camera is no picture for the model: the others go on."""
        if not self._unprepared[frame.stream_id]:
            log.warning("%r cannot be prepared: %s", frame, redacted(one_line(error)))
        with self._bell:
            self._unprepared[frame.stream_id] += 1
            self._in_batch -= 1

    def _answer(self, frames: list[Frame], pictures: list[Tensor], prepared: float) -> Result:
        count = len(frames)
        size = next((one for one in self._pad_to if one >= count), count)
        batch = torch.stack(pictures + [pictures[-1]] * (size - count))
        self._kill_switch.obey(self._processor)
        self._step = None
        started = time.monotonic()
        with torch.inference_mode():
            output = self._processor(
                self._transform(batch),
                streams=[frame.stream_id for frame in frames],
                pts_seconds=[frame.pts_seconds for frame in frames],
                valid=None if size == count else count,
                rejected=[frame.rejection for frame in frames],
            )
        seconds = time.monotonic() - started
        step = self._step  # on CUDA an earlier one's, or none
        latency = Latency(
            decode=sum(frame.decode_seconds for frame in frames),
            queue=max(started - min(frame.arrived for frame in frames), 0.0),
            preprocess=prepared,
            inference=seconds if step is None else step.inference_seconds,
            update=0.0 if step is None else step.update_seconds,
        )
        if size != count:
            listed = isinstance(output, list) and len(output) == size  # one entry a frame
            output = output[:count] if listed else some_frames(output, range(count))
        streams = dict.fromkeys(frame.stream_id for frame in frames)
        return Result(
            output,
            tuple(frames),
            {stream: self._reading(stream) for stream in streams},
            None if step is None else step.outcome,
            latency,
        )

    def _reading(self, stream: Hashable) -> Reading:
        processor = self._processor
        drift = phase = None
        with suppress(StreamError):  # it lost its row to another camera of the batch
            drift, phase = processor.drift_score(stream), processor.phase(stream)
        return Reading(drift, phase, self._action(stream))

    def _action(self, stream: Hashable) -> Action:
        if self._kill_switch.on:
            return "killed"
        if self._processor.mode == "shadow":
            return "shadow"
        if self._processor.frozen:
            return "frozen"
        with suppress(StreamError):
            guarded = self._processor.guarded(stream)
            if guarded is not None and guarded.state != "watching":
                return guarded.state
        return "adapting"

    def _write(self, result: Result) -> None:
        for sink in self._sinks:
            try:
                sink.write(result)
            except Exception as error:
                self._failed(sink, error)

    def _failed(self, sink: Sink, error: Exception) -> None:
        name = type(sink).__name__
        if not self._sink_errors[name]:
            log.exception("%s failed; results go on without it", name)
        self._sink_errors[name] += 1
        self.last_sink_error = one_line(error)

    def _require_some(self) -> None:
        errors = [reader.error for reader in self._readers.values()]
        if errors and all(error is not None for error in errors):
            assert errors[0] is not None
            raise errors[0]


class _Transform:
    """Moves a batch to where and how a model has its weights."""

    def __init__(self, processor: StreamProcessor) -> None:
        self._model = processor.model

    def __call__(self, batch: Tensor) -> Tensor:
        parameter = next(self._model.parameters(), None)
        if parameter is None:
            return batch
        kernel = next((one for one in self._model.parameters() if one.dim() == 4), parameter)
        form = torch.contiguous_format
        if kernel.dim() == 4 and not kernel.is_contiguous():
            form = torch.channels_last
        dtype = parameter.dtype if batch.is_floating_point() else batch.dtype
        return batch.to(parameter.device, dtype, memory_format=form, non_blocking=True)


def _as_it_is(data: Any) -> Tensor:
    if isinstance(data, Tensor):
        return data
    raise ConfigurationError(
        f"Frames are {type(data).__name__}s and not what a model takes. Say how they are prepared, "
        'as in preprocess=Preprocess.parse("resize=224,normalize=imagenet").'
    )


def _listed(sources: Any) -> Iterable[Any]:
    return sources if isinstance(sources, list | tuple) else [sources]
