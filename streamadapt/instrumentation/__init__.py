"""Where events go: metrics for Prometheus, lines for a log. Loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamadapt.instrumentation.cameras import CameraMetrics
    from streamadapt.instrumentation.logging import log_events
    from streamadapt.instrumentation.prometheus import PrometheusExporter

__all__ = ["CameraMetrics", "PrometheusExporter", "log_events"]
_HOME = {
    "CameraMetrics": "cameras",
    "PrometheusExporter": "prometheus",
    "log_events": "logging",
}


def __getattr__(name: str) -> object:
    """Import what is asked for: a log needs no Prometheus."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
