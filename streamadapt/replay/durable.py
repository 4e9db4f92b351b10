"""Files that are either the old ones or the new ones, whenever the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from streamadapt.errors import DataError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write; it takes the place of `path` once it is whole and on the disk.

    Two writers of one path at a time are the caller's to prevent.

    Raises:
        DataError: it cannot be written; `path` is then as it was.
    """
    # One name, not a random one: what a killed process left behind is overwritten, not piled up.
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def sync_folder(path: Path) -> None:
    """Put names that came, went or changed in a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
