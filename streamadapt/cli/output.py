"""Where a subcommand's files go."""

from __future__ import annotations

import sys
from pathlib import Path

from streamadapt.errors import DataError


def write(path: str | Path, text: str) -> None:
    """Write a file in place, as it may be a pipe, and say so; `-` is stdout.

    Raises:
        DataError: it cannot be written.
    """
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
    print(f"wrote {path}", file=sys.stderr)
