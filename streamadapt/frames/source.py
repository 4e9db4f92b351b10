"""What every source of pictures is to a reader."""

from __future__ import annotations

from typing import Protocol

from streamadapt.errors import DataError
from streamadapt.frames.frame import Picture


class SourceLostError(Exception):
    """A live source is away, which may be over soon; the message says what was seen of it."""


class SourceError(DataError):
    """A source that cannot be used: no such file, no picture in it, nothing that decodes it."""


class Source(Protocol):
    """Pictures from one place, read by one thread.

    Attributes:
        name: where they come from, without credentials.
        is_live: it does not wait for its reader.
        returns: its end is an outage: it is opened again.
    """

    name: str
    is_live: bool
    returns: bool

    def open(self) -> None:
        """Make ready to read, from the start; within the source's own time limit.

        Raises:
            SourceError: it cannot be used.
            SourceLostError: it is not there now.
        """
        ...

    def read(self) -> Picture | None:
        """The next picture, None at the end; within the source's own time limit.

        Raises:
            SourceError: it cannot be used.
            SourceLostError: it went away.
        """
        ...

    def close(self) -> None:
        """Let go of it; by the thread that opened it."""
        ...
