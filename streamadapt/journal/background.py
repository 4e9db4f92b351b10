"""Writes records from a thread of its own, so that no step waits for a disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from streamadapt.errors import one_line
from streamadapt.journal.format import Header
from streamadapt.journal.record import Payload, encode_record
from streamadapt.journal.settings import Journal
from streamadapt.journal.writer import FileWriter
from streamadapt.locking import FolderLock

_SYNC_SECONDS = 5.0
_COLLECT_SECONDS = 0.2
log = logging.getLogger("streamadapt")
MakePayload = Callable[[], Payload]


class BackgroundWriter:
    """Takes records without waiting; what the disk cannot take is dropped, counted and told.

    Args:
        journal: where, and how much.

    Raises:
        ConfigurationError: the folder is taken or cannot be used.
    """

    def __init__(self, journal: Journal) -> None:
        folder = Path(journal.folder)
        self._lock = FolderLock(folder, argument="journal")
        self._writer = FileWriter(
            folder, max_file_bytes=journal.max_file_bytes, max_files=journal.max_files
        )
        self._capacity = journal.queue_records
        self._queue: deque[tuple[Header, MakePayload]] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._draining = False
        self._urgent = False
        self._closing = False
        self._dropped = 0
        self._failures: deque[str] = deque(maxlen=1)
        self._thread = threading.Thread(target=self._run, name="streamadapt-journal", daemon=True)
        self._thread.start()

    def put(self, header: Header, make: MakePayload) -> None:
        """Hand a record over, to be made here; drops it when too many wait. Never blocks."""
        with self._changed:
            if len(self._queue) >= self._capacity:
                self._dropped += 1
                return
            self._queue.append((header, make))
            if len(self._queue) > self._capacity // 2:  # waking it each time costs the step more
                self._changed.notify_all()

    def troubles(self) -> tuple[str | None, int]:
        """The latest failure and the number of records dropped, since this was last asked."""
        with self._changed:
            failure = self._failures.pop() if self._failures else None
            dropped, self._dropped = self._dropped, 0
            return failure, dropped

    def flush(self, timeout_seconds: float = 10.0) -> None:
        """Wait until everything handed over is in the file, or dropped; at most that long."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_seconds)
            self._urgent = False

    def close(self) -> None:
        """Write what waits, end the file, and let the folder go."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=30.0)
        self._lock.release()

    def _run(self) -> None:
        synced = time.monotonic()
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                if not self._queue or not self._draining:
                    self._draining = False
                    self._changed.wait_for(self._pressing, _COLLECT_SECONDS)
                    self._draining = bool(self._queue)
                item = self._queue.popleft() if self._queue else None
                if item is None and self._closing:
                    break
                self._busy = item is not None
            if item is not None:
                self._write(*item)
            if time.monotonic() - synced > _SYNC_SECONDS:
                self._guarded(self._writer.sync)
                synced = time.monotonic()
        self._guarded(self._writer.end_file)

    def _pressing(self) -> bool:
        return self._closing or self._urgent or len(self._queue) > self._capacity // 2

    def _write(self, header: Header, make: MakePayload) -> None:
        if self._writer.resting:
            lost = True
        else:
            lost = not self._guarded(
                lambda: self._writer.append(header, encode_record(make(), header))
            )
        if lost:
            with self._changed:
                self._dropped += 1

    def _guarded(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:  # the thread has to outlive whatever it is given
            if not isinstance(error, OSError):
                log.exception("a record of the journal could not be made")
            with self._changed:
                self._failures.append(one_line(error))
            return False
        return True
