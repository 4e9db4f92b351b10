"""A folder that only one processor writes to."""

from __future__ import annotations

import os
from pathlib import Path

from streamadapt.errors import ConfigurationError


class FolderLock:
    """Keeps a folder for one processor; the system lets go of it when the process ends.

    Args:
        folder: made if it is not there.
        argument: that the folder was given as; the lock's file is called after it.

    Raises:
        ConfigurationError: another processor writes there, or nobody can.
    """

    def __init__(self, folder: Path, *, argument: str) -> None:
        import fcntl  # not on every system, and needed by nothing else

        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(folder / f"{argument}.lock", flags, 0o644)
        except OSError as error:
            raise ConfigurationError(
                f"No {argument} can be kept in {folder}: {error.strerror}. Choose another folder "
                f"for `{argument}`."
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            taken = isinstance(error, BlockingIOError)
            raise ConfigurationError(
                f"Another processor keeps its {argument} in {folder}. Give each a folder of its "
                "own."
                if taken
                else f"{folder} cannot be locked: {error.strerror}. Choose a folder on another "
                f"file system for `{argument}`."
            ) from error

    def release(self) -> None:
        """Let another processor have the folder."""
        import fcntl

        # Said outright: a child process that was forked meanwhile may hold the same lock.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
