"""River's drift detectors, behind our protocol."""

from __future__ import annotations

import math
from typing import Any

from streamadapt.drift.detector import Detector
from streamadapt.errors import ConfigurationError


class River(Detector):
    """Any detector of river: `River(river.drift.KSWIN(alpha=1e-6))`.

    Its rate of false alarms is what it is on your scores; `calibrated` is False. Its state cannot
    be written down: after a restart it begins anew.

    Args:
        detector: an instance with river's `update`, `drift_detected` and `clone`.

    Raises:
        ConfigurationError: it is no such thing.
    """

    resumes = False

    def __init__(self, detector: Any) -> None:
        for name in ("update", "drift_detected", "clone"):
            if not hasattr(detector, name):
                raise ConfigurationError(
                    f"A detector of river has `{name}`; {type(detector).__name__} has not."
                )
        self._begun = detector.clone()
        self.reset()

    def update(self, value: float) -> None:
        """Take the next value in."""
        self.drift_detected = self.warning = False
        if math.isfinite(value):
            self._detector.update(value)
            self.drift_detected = bool(self._detector.drift_detected)
            self.warning = bool(getattr(self._detector, "warning_detected", False))

    def reset(self) -> None:
        """Begin anew."""
        self._detector = self._begun.clone()
        self.drift_detected = self.warning = False

    def state_dict(self) -> dict[str, Any]:
        """Which detector it is, and no more."""
        return {"kind": "River", "detector": type(self._begun).__name__}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin anew, if it is the same kind of detector."""
        if state != self.state_dict():
            raise ConfigurationError(
                f"This is river's {type(self._begun).__name__}; the state is another's: {state}."
            )
        self.reset()

    def __repr__(self) -> str:
        return f"River({self._begun!r})"
