"""The folder of a journal: which files are its own, who may write, what may be deleted."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from streamadapt.journal.format import MAGIC

_NAME = re.compile(r"journal-(\d{6,})\.saj")


def journal_files(folder: Path) -> list[Path]:
    """Files that are named like a journal's, oldest first."""
    return [path for _, path in sorted(_numbered(folder))]


def begin_file(folder: Path) -> tuple[Path, int]:
    """Create the next file; returns its path and a descriptor to append to.

    Creation is exclusive: whatever is there already is never written to.

    Raises:
        OSError: it cannot be created.
    """
    number = max((number for number, _ in _numbered(folder)), default=0) + 1
    path = folder / f"journal-{number:06d}.saj"
    return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC)


def prune(folder: Path, *, keep: int, current: Path) -> None:
    """Delete the oldest journal files beyond `keep`, and nothing that is not a journal file.

    Raises:
        OSError: one cannot be deleted.
    """
    own = [path for path in journal_files(folder) if path == current or _is_journal(path)]
    for path in own[:-keep]:
        if path != current:
            path.unlink(missing_ok=True)


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            yield int(match[1]), path


def _is_journal(path: Path) -> bool:
    """Whether a file is one of ours by its first bytes; neither links nor folders are."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
