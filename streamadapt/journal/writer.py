"""Appends records to files that are rotated: whole ones, or none."""

from __future__ import annotations

import os
import time
from pathlib import Path

from streamadapt.journal.folder import begin_file, prune
from streamadapt.journal.format import Header, encode_header

_PATIENCE_SECONDS = 1.0  # after a failure: a full disk is not asked again for every record


class FileWriter:
    """Writes the files of one run; used by one thread.

    Args:
        folder: where.
        max_file_bytes: a file that would become larger is followed by a new one. A record that is
            larger by itself has a file of its own.
        max_files: the oldest go beyond it.

    Attributes:
        files_begun: so far.
        bytes_written: so far, of all files.
    """

    def __init__(self, folder: Path, *, max_file_bytes: int, max_files: int) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._header: Header | None = None
        self._empty = True
        self._size = 0
        self._failed_at = -float("inf")
        self.files_begun = 0
        self.bytes_written = 0

    def append(self, header: Header, record: bytes) -> None:
        """Write a record, after a new file's header where one is due.

        Raises:
            OSError: it is not written, nor any part of it.
        """
        try:
            if self._descriptor is not None:
                if os.fstat(self._descriptor).st_nlink == 0:  # writing on would succeed, unseen
                    raise FileNotFoundError(f"{self._path} was deleted")
                full = self._size + len(record) > self._max_file_bytes and not self._empty
                if full or header is not self._header:
                    self.end_file()
            if self._descriptor is None:
                self._begin(header)
            self._write(record)
            self._empty = False
        except OSError:
            self._failed_at = time.monotonic()
            self._abandon()
            raise

    @property
    def resting(self) -> bool:
        """Whether the last attempt failed so recently that another makes no sense."""
        return time.monotonic() - self._failed_at < _PATIENCE_SECONDS

    def sync(self) -> None:
        """Have the system write everything to the disk.

        Raises:
            OSError: it cannot.
        """
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def end_file(self) -> None:
        """Close the present file; the next record begins another.

        Raises:
            OSError: the last bytes did not reach the disk.
        """
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _begin(self, header: Header) -> None:
        self._path, self._descriptor = begin_file(self._folder)
        self._header, self._size, self._empty = header, 0, True
        self._write(encode_header(header))
        self.files_begun += 1
        prune(self._folder, keep=self._max_files, current=self._path)

    def _write(self, data: bytes) -> None:
        assert self._descriptor is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._size += len(data)
        self.bytes_written += len(data)

    def _abandon(self) -> None:
        """Leave the present file with its whole records; without any, take it away again."""
        if self._descriptor is None or self._path is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.ftruncate(descriptor, self._size)
            if self._empty and os.fstat(descriptor).st_nlink:
                self._path.unlink(missing_ok=True)
        except OSError:
            pass  # the reader copes with half a record, and the failure is being reported
        finally:
            os.close(descriptor)
