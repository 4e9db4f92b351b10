"""How far the world has moved."""

from streamadapt.drift.readout import Drift as Drift
from streamadapt.moments import location_scale_distance as location_scale_distance

__all__ = ["Drift", "location_scale_distance"]
