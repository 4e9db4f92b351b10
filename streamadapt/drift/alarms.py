"""What a camera's alarms promise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamadapt.drift.e_detector import EDetector
from streamadapt.drift.export import FrameExport
from streamadapt.drift.monitor import MONTH_SECONDS, MakeDetector
from streamadapt.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """How drift is watched for.

    Attributes:
        expected_run_seconds: camera time between false alarms of a camera, all scores together. It
            is promised from a reference of a two-hundredth of it on.
        rate_hz: scores a second that detectors see.
        detector: watches one score; see `ScoreMonitor`.
        fleet_cameras: alarms of so many different cameras are a fleet's alarm.
        fleet_window_seconds: if they come within so long.
        export: where frames of streams that alarm are put, for labelling; None: nowhere.
        background: find thresholds in a thread beside the stream. Without, the step in which a
            reference has become long enough takes a second longer.

    Raises:
        ConfigurationError: a time, rate or number that is not positive.
    """

    expected_run_seconds: float = MONTH_SECONDS
    rate_hz: float = 1.0
    detector: MakeDetector = EDetector
    fleet_cameras: int = 5
    fleet_window_seconds: float = 600.0
    export: FrameExport | None = None
    background: bool = True

    def __post_init__(self) -> None:
        for name in ("expected_run_seconds", "rate_hz", "fleet_window_seconds"):
            value = getattr(self, name)
            if not (value > 0.0 and math.isfinite(value)):
                raise ConfigurationError(f"`{name}` must be positive and finite, got {value}.")
        whole = isinstance(self.fleet_cameras, int) and not isinstance(self.fleet_cameras, bool)
        if not whole or self.fleet_cameras < 1:
            raise ConfigurationError(
                f"`fleet_cameras` must be a whole number of at least 1, got {self.fleet_cameras}."
            )
