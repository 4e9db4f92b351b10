"""Checks and fakes for tests of code that builds on streamadapt; nothing here runs in production.

`check_estimator` and `check_detector` hold an estimator and a drift detector to every law that the
runtime relies on.
"""

from streamadapt.testing.detectors import check_detector as check_detector
from streamadapt.testing.estimators import check_estimator as check_estimator
from streamadapt.testing.fakes import fake_observation as fake_observation
from streamadapt.testing.fakes import fake_state as fake_state
from streamadapt.testing.fakes import frames as frames
from streamadapt.testing.fakes import tiny_model as tiny_model

__all__ = [
    "check_detector",
    "check_estimator",
    "fake_observation",
    "fake_state",
    "frames",
    "tiny_model",
]
