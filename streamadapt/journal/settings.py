"""Where a journal goes and how much room it may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamadapt.errors import ConfigurationError
from streamadapt.journal.format import Precision

_SMALLEST_FILE = 4096


@dataclass(frozen=True)
class Journal:
    """What `StreamProcessor(journal=...)` takes.

    Never more than about `max_files * max_file_bytes` are kept: the oldest file goes.

    Attributes:
        folder: made if it is not there; one processor at a time writes in it.
        max_file_bytes: a file that would become larger is followed by a new one.
        max_files: how many are kept, at least 2.
        precision: of the moments, `single` (4 bytes a value) or `half` (2, in units of the source).
        queue_records: records that may wait for the disk; more are dropped and counted.
        state_every: after how many records of a stream its whole state is written, too.

    Raises:
        ConfigurationError: a number out of range, or an unknown precision.
    """

    folder: str | Path
    max_file_bytes: int = 64 << 20
    max_files: int = 8
    precision: Precision = "single"
    queue_records: int = 256
    state_every: int = 64

    def __post_init__(self) -> None:
        lowest = {
            "max_file_bytes": _SMALLEST_FILE,
            "max_files": 2,
            "queue_records": 1,
            "state_every": 1,
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ConfigurationError(
                    f"`{name}` of a journal must be at least {least}, got {getattr(self, name)}."
                )
        if self.precision not in ("single", "half"):
            raise ConfigurationError(
                f'`precision` must be "single" or "half", got {self.precision!r}.'
            )
