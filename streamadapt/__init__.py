"""Online test-time adaptation for deployed PyTorch vision models."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from streamadapt import alignment, between, drift, errors, estimators, events, journal
from streamadapt.calibration import calibrate
from streamadapt.guard import Guard
from streamadapt.moments import Moments
from streamadapt.offline import adabn
from streamadapt.processor import StreamProcessor
from streamadapt.profile import SourceProfile
from streamadapt.store import FileStore
from streamadapt.taps import fold

try:
    __version__ = version("streamadapt")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "FileStore",
    "Guard",
    "Moments",
    "Pipeline",
    "SourceProfile",
    "StreamProcessor",
    "__version__",
    "adabn",
    "alignment",
    "between",
    "calibrate",
    "drift",
    "errors",
    "estimators",
    "events",
    "fold",
    "frames",
    "instrumentation",
    "journal",
    "pipeline",
    "replay",
    "testing",
]
_LAZY = ("frames", "instrumentation", "pipeline", "replay", "testing")


def __getattr__(name: str) -> object:
    """Load the outer rooms on first use: they bring Prometheus, PyAV, Pillow and the like."""
    if name in _LAZY:
        return import_module(f"streamadapt.{name}")
    if name == "Pipeline":
        return import_module("streamadapt.pipeline").Pipeline
    raise AttributeError(f"module 'streamadapt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
