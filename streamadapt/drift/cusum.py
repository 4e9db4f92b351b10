"""The cumulative sum of a score's deviations, both ways."""

from __future__ import annotations

import numpy as np

from streamadapt.drift.autoregression import AutoRegression
from streamadapt.drift.calibrated import Array, CalibratedDetector, Evidence

_SLACK = 0.5  # deviations: made for shifts of one


class CUSUM(CalibratedDetector):
    """Page's test on the score itself: `s = max(0, s + |z| - 1/2)`, up and down.

    Simple, and indifferent to the shape of a change; on correlated scores slower than `EDetector`.

    Reference:
        Page, "Continuous inspection schemes", Biometrika 41, 1954.
    """

    def _begin(self, model: AutoRegression, series: int) -> Evidence:
        return {"up": np.zeros(series), "down": np.zeros(series)}

    def _take(self, model: AutoRegression, evidence: Evidence, values: Array) -> Array:
        z = (values - model.mean) / model.deviation
        evidence["up"] = np.maximum(evidence["up"] + z - _SLACK, 0.0)
        evidence["down"] = np.maximum(evidence["down"] - z - _SLACK, 0.0)
        return np.maximum(evidence["up"], evidence["down"])

    def _forget(self, evidence: Evidence) -> None:
        evidence["up"][:] = 0.0
        evidence["down"][:] = 0.0
