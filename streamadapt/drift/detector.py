"""The contract of a drift detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Detector(ABC):
    """Watches one score and says when it is no longer what it was.

    Values that are not finite are seconds without a score: they change nothing. After an alarm the
    evidence starts anew with the next value; `drift_detected` holds for the value that brought it.

    Attributes:
        drift_detected: the last value brought an alarm.
        warning: the evidence is on its way there.
        calibrated: the rate of false alarms is the one that was asked for.
        resumes: it goes on to the bit where a `state_dict` was taken; otherwise it begins anew.
    """

    drift_detected: bool = False
    warning: bool = False
    calibrated: bool = False
    resumes: bool = True

    @abstractmethod
    def update(self, value: float) -> None:
        """Take the next value in."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the evidence; what was learned from a reference stays."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything it knows, as values that JSON can hold."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the bit.

        Raises:
            ConfigurationError: the state is another kind of detector's.
        """
