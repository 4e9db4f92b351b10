"""Generations of streams in a folder: a folder each, a file a generation, the newest last.

A file comes into being under its name whole, and on the disk, or not at all: it is written beside,
brought to the disk, renamed, and so is the folder's entry. What is not named like a generation is
never touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from streamadapt.errors import DataError
from streamadapt.store.format import decode, encode
from streamadapt.store.state import Stream, StreamState

_NAME = re.compile(r"(\d{9,})\.safetensors")
_UNFINISHED = re.compile(r"\.\d{9,}\.safetensors\.\d+\.tmp")
_SHOWN = 60  # characters of a stream's name that its folder shows


@dataclass(frozen=True)
class Generation:
    """One file.

    Attributes:
        number: among those of its stream.
        path: where it lies.
        size_bytes: of the file.
    """

    number: int
    path: Path
    size_bytes: int

    def read(self) -> StreamState:
        """What is in it.

        Raises:
            DataError: it is damaged, or cannot be read.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}.") from error
        state, _ = decode(content, where=str(self.path))
        return state


def folder_name(stream: Stream) -> str:
    """What a stream's folder is called; no two streams' are the same, whatever the file system."""
    key = json.dumps(stream)
    shown = quote(str(stream), safe="").replace(".", "%2E")[:_SHOWN]
    return f"{shown}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def generations(folder: Path) -> list[Generation]:
    """A stream's, oldest first; none where there is no such folder."""
    found = []
    for path in _files(folder):
        match = _NAME.fullmatch(path.name)
        if match and path.is_file() and not path.is_symlink():
            found.append(Generation(int(match[1]), path, path.stat().st_size))
    return sorted(found, key=lambda one: one.number)


def write(folder: Path, state: StreamState, *, keep: int) -> Generation:
    """Add a generation, and delete the oldest beyond `keep`.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    if not folder.exists():
        folder.mkdir(parents=True)
        _to_disk(folder.parent)
    known = generations(folder)
    taken = [int(match[1]) for match in map(_NAME.fullmatch, _names(folder)) if match]
    number = max(taken, default=0) + 1
    path = folder / f"{number:09d}.safetensors"
    content = encode(state, generation=number)
    beside = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _to_disk(folder)
    for old in known[: max(len(known) + 1 - keep, 0)]:
        old.path.unlink(missing_ok=True)
    return Generation(number, path, len(content))


def clear_unfinished(folder: Path) -> None:
    """Delete what a process that was killed left behind while it wrote a generation."""
    for path in _files(folder):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    return [path.name for path in _files(folder)]


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except (FileNotFoundError, NotADirectoryError):
        return


def _to_disk(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
