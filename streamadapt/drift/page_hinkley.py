"""The test of Page and Hinkley: deviations from the mean so far, summed up."""

from __future__ import annotations

import numpy as np

from streamadapt.drift.autoregression import AutoRegression
from streamadapt.drift.calibrated import Array, CalibratedDetector, Evidence

_SLACK = 0.5  # deviations: made for shifts of one


class PageHinkley(CalibratedDetector):
    """`CUSUM` around the running mean since the last alarm, in place of the reference's mean.

    It forgives a reference whose mean was off, and gets used to a change that it did not find
    soon. The reference gives the scale, and the threshold by bootstrap, which the test as it was
    published has not.

    Reference:
        Hinkley, "Inference about the change-point from cumulative sum tests", Biometrika 58, 1971.
    """

    def _begin(self, model: AutoRegression, series: int) -> Evidence:
        return {name: np.zeros(series) for name in ("seen", "mean", "up", "down")}

    def _take(self, model: AutoRegression, evidence: Evidence, values: Array) -> Array:
        z = (values - model.mean) / model.deviation
        evidence["seen"] = evidence["seen"] + 1.0
        evidence["mean"] = evidence["mean"] + (z - evidence["mean"]) / evidence["seen"]
        off = z - evidence["mean"]
        evidence["up"] = np.maximum(evidence["up"] + off - _SLACK, 0.0)
        evidence["down"] = np.maximum(evidence["down"] - off - _SLACK, 0.0)
        return np.maximum(evidence["up"], evidence["down"])

    def _forget(self, evidence: Evidence) -> None:
        for array in evidence.values():
            array[:] = 0.0
