"""Reads a journal back, up to the last whole record of every file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from streamadapt.errors import DataError
from streamadapt.journal.folder import journal_files
from streamadapt.journal.format import Header, decode_header, header_bytes
from streamadapt.journal.record import Payload, decode_payload, whole_records


@dataclass(frozen=True)
class FileReport:
    """What a file of a journal holds.

    Attributes:
        path: where it is.
        records: whole ones.
        damaged_bytes: after the last of them: cut short by a crash, or spoilt.
    """

    path: Path
    records: int
    damaged_bytes: int


class JournalReader:
    """The records of a journal, oldest first. What is damaged is left out and counted.

    Args:
        path: a folder that a processor kept its journal in, or one of its files.

    Attributes:
        files: what was found in each file, of those that have been read so far.

    Raises:
        DataError: no journal there.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        try:
            self._paths = journal_files(path) if path.is_dir() else [path]
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        if not self._paths:
            raise DataError(f"{path}: there is no journal in this folder.")
        if not self._paths[0].exists():
            raise DataError(f"{path}: there is no such file or folder.")
        self.files: list[FileReport] = []

    @property
    def damaged_bytes(self) -> int:
        """Of all files that have been read."""
        return sum(file.damaged_bytes for file in self.files)

    def __iter__(self) -> Iterator[tuple[Header, Payload]]:
        """Header and record, of all files in turn; one file is in memory at a time.

        Raises:
            DataError: a file is not a journal, or of another version.
        """
        self.files = []
        for path in self._paths:
            yield from self._file(path)

    def _file(self, path: Path) -> Iterator[tuple[Header, Payload]]:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        try:
            size = header_bytes(data)
        except DataError as error:
            raise DataError(f"{path}: {error}.") from error
        if size is None or size > len(data):
            self.files.append(FileReport(path, 0, len(data)))  # cut inside its header
            return
        try:
            header = decode_header(data[:size])
        except DataError:
            self.files.append(FileReport(path, 0, len(data)))
            return
        view = memoryview(data)
        end, count = size, 0
        found: list[Payload] = []
        for begin, stop in whole_records(data, size):
            try:
                found.append(decode_payload(view[begin:stop], header))
            except DataError:
                break
            end, count = stop, count + 1
        self.files.append(FileReport(path, count, len(data) - end))
        for payload in found:
            yield header, payload
