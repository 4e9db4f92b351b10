"""One switch that puts every camera back on the model as it was deployed."""

from __future__ import annotations

import os
from pathlib import Path

from streamadapt.processor import StreamProcessor

VARIABLE = "STREAMADAPT_KILL"
_OFF = ("", "0", "off", "no", "false")


class KillSwitch:
    """While it is on, every answer is the source model's, to the bit; looked at before each batch.

    It is on while a file exists, or the environment variable `STREAMADAPT_KILL` says so. Streams
    that have a store are saved when it is put on; when it is put off they begin from the source.

    Args:
        path: of the file; None: only the variable.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self.on = False

    def obey(self, processor: StreamProcessor) -> bool:
        """Switch a processor as the switch is; whether that is a change."""
        on = os.environ.get(VARIABLE, "").strip().lower() not in _OFF or self._exists()
        if on == self.on:
            return False
        if on:
            self._before = processor.mode
            processor.mode = "shadow"
        else:
            processor.mode = self._before
        self.on = on
        return True

    def _exists(self) -> bool:
        try:
            return self._path is not None and self._path.exists()
        except OSError:  # a folder that cannot be looked into: rather on than off
            return True
