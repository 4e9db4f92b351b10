"""The test of Page and Hinkley: deviations from the mean so far, summed up."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from streamadapt.drift.autoregression import AutoRegression
from streamadapt.drift.calibrated import EVERY, Array, CalibratedDetector, Evidence, Series
from streamadapt.drift.cusum import both_ways


class PageHinkley(CalibratedDetector):
    """`CUSUM` around the running mean since the last alarm, in place of the reference's mean.

    It forgives a reference whose mean was off, and gets used to a change that it did not find
    soon. The reference gives the scale, and the threshold by bootstrap, which the test as it was
    published has not.

    Reference:
        Hinkley, "Inference about the change-point from cumulative sum tests", Biometrika 58, 1971.
    """

    def _begin(self, model: AutoRegression, series: int, dtype: DTypeLike = np.float64) -> Evidence:
        return {
            "seen": np.zeros(series, dtype),
            "mean": np.zeros(series, dtype),
            "sums": np.zeros((2, series), dtype),
        }

    def _sweep(self, model: AutoRegression, evidence: Evidence, values: Array) -> Array:
        z = (values - model.mean) / model.deviation
        before, dtype = evidence["seen"], evidence["seen"].dtype
        seen = before + np.arange(1.0, len(z) + 1.0)[:, None]
        mean = (evidence["mean"] * before + z.cumsum(axis=0)) / seen
        evidence["seen"], evidence["mean"] = seen[-1].astype(dtype), mean[-1].astype(dtype)
        return both_ways(evidence, z - mean)

    def _forget(self, evidence: Evidence, series: Series = EVERY) -> None:
        for array in evidence.values():
            array[..., series] = 0.0
