"""Frames of many cameras in one batch, within a time limit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from threading import Condition

from streamadapt.errors import ConfigurationError
from streamadapt.frames import Frame, FrameReader

_LONGEST_WAIT = 0.5  # before it is looked again whether a frame has become too old


class Batcher:
    """Takes frames from readers in turn: one of each camera, then another of each, and so on.

    Frames of a camera stay in their order. A batch is complete with `max_batch` frames; when every
    camera whose next frame is due has given one; or `max_wait` after the first of its frames
    arrived. A camera that is away, or late, is not waited for. Files wait for nobody: batches of
    them are filled whatever it takes, so that they are the same each time.

    Args:
        bell: what all the readers ring.
        max_batch: frames of a batch at most.
        max_wait: seconds.
        max_cameras: that have frames in one batch; None: all.
        clock: as in `Frame.arrived`.

    Raises:
        ConfigurationError: an argument out of range.
    """

    def __init__(
        self,
        *,
        bell: Condition,
        max_batch: int = 8,
        max_wait: float = 0.01,
        max_cameras: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_batch < 1:
            raise ConfigurationError(f"`max_batch` must be at least 1, got {max_batch}.")
        if max_wait < 0.0:
            raise ConfigurationError(f"`max_wait` must not be negative, got {max_wait}.")
        self._bell, self._clock = bell, clock
        self._max_batch, self._max_wait = max_batch, max_wait
        self._max_cameras = max_cameras
        self._readers: dict[Hashable, FrameReader] = {}
        self._first = 0
        self._closed = False

    def add(self, reader: FrameReader) -> None:
        """Take frames of one more camera.

        Raises:
            ConfigurationError: there is one of that name.
        """
        with self._bell:
            if reader.stream_id in self._readers:
                raise ConfigurationError(
                    f"There are two cameras called {reader.stream_id!r}. Give each a name of its "
                    "own, as `stream_id`."
                )
            self._readers[reader.stream_id] = reader
            self._bell.notify_all()

    def remove(self, stream_id: Hashable) -> FrameReader | None:
        """Take no more frames of a camera."""
        with self._bell:
            reader = self._readers.pop(stream_id, None)
            self._bell.notify_all()
            return reader

    def close(self) -> None:
        """Give no more batches."""
        with self._bell:
            self._closed = True
            self._bell.notify_all()

    def next(self, *, taken: Callable[[int], None] = lambda _: None) -> list[Frame] | None:
        """The next batch, one frame at least; None: there are no more.

        Args:
            taken: called with the number of frames while nothing else changes.
        """
        with self._bell:
            while not self._closed:
                wait = self._wait_seconds()
                if wait is None:
                    frames = self._collect()
                    taken(len(frames))
                    return frames
                if all(reader.exhausted for reader in self._readers.values()):
                    return None
                self._bell.wait(min(wait, _LONGEST_WAIT))
            return None

    def _wait_seconds(self) -> float | None:
        """How long a batch is worth waiting for; None: there is one."""
        now = self._clock()
        share = max(self._max_batch // max(len(self._readers), 1), 1)
        oldest, expected, total, filling = [], [], 0, False
        for reader in self._readers.values():
            waiting = reader.waiting
            total += waiting
            if not reader.is_live:
                filling |= waiting < min(share, reader.room) and not reader.finished
            elif (arrived := reader.oldest()) is not None:
                oldest.append(arrived)
            elif (soon := reader.expected()) is not None:
                expected.append(soon)
        if (filling and not oldest) or not total:
            return _LONGEST_WAIT
        if total >= self._max_batch:
            return None
        limit = min(oldest, default=now) + self._max_wait
        return limit - now if now < limit and min(expected, default=math.inf) <= limit else None

    def _collect(self) -> list[Frame]:
        readers = list(self._readers.values())
        share = max(self._max_batch // max(len(readers), 1), 1)
        self._first = (self._first + 1) % max(len(readers), 1)
        turns = readers[self._first :] + readers[: self._first]
        turns = [one for one in turns if one.waiting][: self._max_cameras]
        frames: list[Frame] = []
        rounds = 0
        while turns and len(frames) < self._max_batch:
            left = []
            for reader in turns[: self._max_batch - len(frames)]:
                frame = reader.take()
                if frame is not None:
                    frames.append(frame)
                    left.append(reader)
            rounds += 1
            turns = [one for one in left if one.is_live or rounds < share]
        return frames
