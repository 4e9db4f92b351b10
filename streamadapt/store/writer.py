"""Writes generations from a thread of its own, so that no step waits for a disk."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from streamadapt.errors import one_line
from streamadapt.store.state import Stream, StreamState

log = logging.getLogger("streamadapt")
Make = Callable[[], StreamState]
Write = Callable[[StreamState], Any]
Written = tuple[Stream, Any, str | None]  # what `write` gave, or the error


class BackgroundWriter:
    """Takes states and writes the newest of each stream, one after the other.

    Args:
        write: brings one to the disk.
        capacity: streams that wait at most.
    """

    def __init__(self, write: Write, *, capacity: int) -> None:
        self._write, self._capacity = write, capacity
        self._waiting: OrderedDict[Stream, Make] = OrderedDict()
        self._current: tuple[Stream, Make] | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._done: deque[Written] = deque(maxlen=4 * capacity)
        self._thread = threading.Thread(target=self._run, name="streamadapt-store", daemon=True)
        self._thread.start()

    def put(self, stream: Stream, make: Make, *, wait_seconds: float) -> bool:
        """Hand a state over; it takes the place of one of its stream that waits.

        Args:
            stream: whose.
            make: makes it, in the thread.
            wait_seconds: for room, at most, where as many streams wait as may.

        Returns:
            Whether it was taken.
        """
        with self._changed:
            if stream not in self._waiting:
                self._changed.wait_for(self._has_room, wait_seconds)
                if not self._has_room():
                    return False
            if self._closing:
                return False
            self._waiting[stream] = make
            self._changed.notify_all()
            return True

    def pending(self, stream: Stream) -> StreamState | None:
        """What waits for a stream, or is being written."""
        with self._changed:
            make = self._waiting.get(stream)
            if make is None and self._current is not None and self._current[0] == stream:
                make = self._current[1]
        return None if make is None else make()

    def done(self) -> list[Written]:
        """What was written since this was last asked."""
        with self._changed:
            found = list(self._done)
            self._done.clear()
            return found

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until nothing waits; whether that came to be in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._waiting and self._current is None, timeout_seconds
            )

    def close(self, timeout_seconds: float) -> bool:
        """Write what waits, and end; whether everything was written in time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _has_room(self) -> bool:
        return len(self._waiting) < self._capacity

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                stream, make = self._current = self._waiting.popitem(last=False)
                self._changed.notify_all()
            written, problem = None, None
            try:
                written = self._write(make())
            except Exception as error:  # the thread has to outlive whatever the disk does
                if not isinstance(error, OSError):
                    log.exception("a generation of %r could not be made", stream)
                problem = one_line(error)
            with self._changed:
                self._current = None
                self._done.append((stream, written, problem))
                self._changed.notify_all()
