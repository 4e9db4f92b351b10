"""The folder of a run: what a killed one finished is there, and the next one goes on with it.

::

    run.json         what is run: scenario, fingerprints of data, model and versions, keys
    frames.npy       the frames, uint8 [F, H, W, 3]; calibration.npy, schedule.npz belong to them
    units/NAME.json  one policy that has finished
    result.json      all of them, once there is nothing left to do
    lock             held by the process that works here

Every file is written beside its place and renamed into it. What is kept carries a key, a digest of
all that it came from, and counts only where the key is the one that is asked for.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.durable import sync_folder, write_text
from streamadapt.replay.recording import CALIBRATION_FILE, FRAMES_FILE, SCHEDULE_FILE
from streamadapt.replay.result import RESULT_FILE, ReplayResult
from streamadapt.replay.unit import UnitResult

RUN_FILE, UNITS_FOLDER, LOCK_FILE, REPORT_FILE = "run.json", "units", "lock", "report.html"
_OURS = (RUN_FILE, RESULT_FILE, REPORT_FILE, SCHEDULE_FILE, FRAMES_FILE, CALIBRATION_FILE)


class RunDirectory:
    """A folder that this process alone works in, until it is closed.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out.

        Raises:
            DataError: the folder cannot be made or written in.
            ConfigurationError: another process works in it.
        """
        try:
            (self.path / UNITS_FOLDER).mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK_FILE).open("a")
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be a run directory ({error.strerror})."
            ) from error
        with lock:
            # The kernel lets go of it with the process, however that ends.
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigurationError(
                    f"{self.path}: another process is working in this run directory. Wait for it, "
                    "or give another."
                ) from error
            yield

    def clear(self) -> None:
        """Take away what a run left here, and nothing else."""
        units = sorted((self.path / UNITS_FOLDER).glob("*.json"))
        for path in [*(self.path / name for name in _OURS), *units]:
            path.unlink(missing_ok=True)

    def describe(self, description: dict[str, Any]) -> None:
        """Say what is run here; a result of something else goes."""
        text = json.dumps(description, sort_keys=True, indent=1) + "\n"
        path = self.path / RUN_FILE
        try:
            same = path.read_text(encoding="utf-8") == text
        except (OSError, UnicodeDecodeError):
            same = False
        if not same:
            (self.path / RESULT_FILE).unlink(missing_ok=True)
            sync_folder(self.path)
            write_text(path, text)

    def unit(self, name: str, *, key: str | None, frames: int) -> UnitResult | None:
        """A policy that has finished; None where it has not, or was something else."""
        try:
            content = json.loads(self._unit_path(name).read_text(encoding="utf-8"))
            if key is None or content["key"] != key:
                return None
            return UnitResult.from_dict(content, frames=frames)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not one of ours
            return None

    def keep_unit(self, unit: UnitResult, *, key: str | None) -> None:
        """Write down a policy that has finished."""
        content = {**unit.to_dict(), "key": key}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        write_text(self._unit_path(unit.series.name), text + "\n")

    def result(self) -> ReplayResult | None:
        """The result of what was last described, if there is one."""
        if not (self.path / RESULT_FILE).exists():
            return None
        try:
            return ReplayResult.load(self.path)
        except DataError:
            return None

    def keep_result(self, result: ReplayResult) -> None:
        """Write down the result."""
        write_text(self.path / RESULT_FILE, result.to_json())

    def _unit_path(self, name: str) -> Path:
        return self.path / UNITS_FOLDER / f"{slug(name)}.json"


def slug(name: str) -> str:
    """A name that is fit for a file and belongs to this one only.

    >>> slug("EMA, 0.1")
    'ema-0.1-c66ca8a0'
    """
    words = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:40]
    return f"{words or 'policy'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def run_directory_name(name: str, configuration_hash: str) -> str:
    """How the folder of a scenario's run is called.

    Args:
        name: of the scenario.
        configuration_hash: of the scenario.

    >>> run_directory_name("Fog, slowly", "0123456789ab")
    'fog-slowly-0123456789ab'
    """
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]
    return f"{words or 'run'}-{configuration_hash}"
