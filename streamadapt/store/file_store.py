"""States of streams in a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.locking import FolderLock
from streamadapt.store import folder as files
from streamadapt.store.folder import Generation
from streamadapt.store.state import Stream, StreamState

_STREAMS, _SOURCE = "streams", "source"
log = logging.getLogger("streamadapt")


@dataclass(frozen=True)
class Found:
    """What there is of a stream.

    Attributes:
        state: the newest that is whole; None: there is none.
        generation: its number.
        damaged: newer ones that were passed over, and what is wrong with each.
    """

    state: StreamState | None
    generation: int = 0
    damaged: tuple[str, ...] = ()


class FileStore:
    """Keeps what streams have adapted to, so that it outlives the process.

    A stream that comes back, after a restart or because its row had been given away, goes on where
    it was. Each time it is saved a new file is written, whole or not at all; a damaged one is
    passed over for the one before. Files are safetensors (docs/snapshot-format.md); nothing is
    unpickled, and nothing is deleted but generations of its own.

    Args:
        folder: where; made if it is not there. One processor at a time.
        keep: generations of each stream.
        every_seconds: a stream's statistics are saved so long after the last time, if frames came.
        preprocessing: how frames are prepared, as a text of yours; a state that was made with
            another one is not used.

    Raises:
        ConfigurationError: an argument is out of range.

    >>> import tempfile
    >>> store = FileStore(tempfile.mkdtemp(), keep=3)
    >>> store.streams()
    ()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 8,
        every_seconds: float = 60.0,
        preprocessing: str = "",
    ) -> None:
        if keep < 1:
            raise ConfigurationError(f"`keep` must be at least 1, got {keep}.")
        if not every_seconds > 0.0:
            raise ConfigurationError(f"`every_seconds` must be positive, got {every_seconds}.")
        self.folder, self.keep = Path(folder), keep
        self.every_seconds, self.preprocessing = every_seconds, preprocessing
        self._lock: FolderLock | None = None

    def open(self, source: StreamState) -> None:
        """Take the folder for a model; `source` is kept beside the streams' states.

        Raises:
            ConfigurationError: another processor has it, it is of another model, or cannot be used.
        """
        if self._lock is not None:
            raise ConfigurationError(f"{self!r} is in use by another processor.")
        lock = FolderLock(self.folder, argument="store")
        try:
            self._require_model(source)
            if files.generations(self.folder / _SOURCE) == []:
                files.write(self.folder / _SOURCE, source, keep=1)
        except OSError as error:
            lock.release()
            raise ConfigurationError(
                f"No store can be kept in {self.folder}: {error.strerror}. Choose another folder."
            ) from error
        except BaseException:
            lock.release()
            raise
        self._lock = lock

    def close(self) -> None:
        """Let another processor have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def source(self) -> StreamState | None:
        """The source statistics of the model that the folder belongs to; None: of none yet."""
        return _newest(files.generations(self.folder / _SOURCE)).state

    def streams(self) -> tuple[Stream, ...]:
        """Streams that something is kept of, in the order of their folders' names."""
        try:
            folders = sorted((self.folder / _STREAMS).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return ()
        found = [_newest(files.generations(one)).state for one in folders]
        return tuple(one.stream for one in found if one is not None)

    def generations(self, stream: Stream) -> list[Generation]:
        """Of a stream, oldest first."""
        return files.generations(self._of(stream))

    def load(self, stream: Stream) -> Found:
        """The newest state of a stream that is whole."""
        found = _newest(self.generations(stream))
        if found.state is not None and found.state.stream != stream:
            return Found(None, damaged=(f"{self._of(stream)}: of {found.state.stream!r}.",))
        return found

    def save(self, state: StreamState) -> Generation:
        """Write a stream's next generation; on the disk when this returns.

        Raises:
            OSError: it cannot be written; what was there is as it was.
        """
        folder = self._of(state.stream)
        files.clear_unfinished(folder)
        return files.write(folder, state, keep=self.keep)

    def restore(self, state: StreamState) -> Generation:
        """Write a state as its stream's newest, while no processor has the folder.

        Raises:
            ConfigurationError: one has it.
            OSError: it cannot be written.
        """
        lock = FolderLock(self.folder, argument="store")
        try:
            return self.save(state)
        finally:
            lock.release()

    def _of(self, stream: Stream) -> Path:
        return self.folder / _STREAMS / files.folder_name(stream)

    def _require_model(self, source: StreamState) -> None:
        known = self.source()
        if known is not None and known.model != source.model:
            raise ConfigurationError(
                f"{self.folder} keeps statistics of another model, or of other source statistics "
                f"({known.model[:12]} instead of {source.model[:12]}): "
                f"{_difference(known, source)}. Give each model a folder of its own."
            )

    def __repr__(self) -> str:
        return f"FileStore({str(self.folder)!r}, keep={self.keep})"


def _newest(generations: Sequence[Generation]) -> Found:
    damaged: list[str] = []
    for one in reversed(generations):
        try:
            return Found(one.read(), one.number, tuple(damaged))
        except DataError as error:
            damaged.append(str(error))
    return Found(None, damaged=tuple(damaged))


def _difference(known: StreamState, source: StreamState) -> str:
    """What sets two models apart, in words."""
    if known.layers == source.layers:
        return "the layers are the same, their source statistics are not"
    ours, theirs = dict.fromkeys(source.layers), dict.fromkeys(known.layers)
    other = next((one for one in theirs if one not in ours), None)
    if other is None:
        other = next(one for one in ours if one not in theirs)
        return f"layer {other[0]!r} of {other[1]} channels is new"
    return f"layer {other[0]!r} of {other[1]} channels is not in this one"
