"""The cumulative sum of a score's deviations, both ways."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from streamadapt.drift.autoregression import AutoRegression
from streamadapt.drift.calibrated import EVERY, Array, CalibratedDetector, Evidence, Series

_SLACK = 0.5  # deviations: made for shifts of one


class CUSUM(CalibratedDetector):
    """Page's test on the score itself: `s = max(0, s + |z| - 1/2)`, up and down.

    Simple, and indifferent to the shape of a change; on correlated scores slower than `EDetector`.

    Reference:
        Page, "Continuous inspection schemes", Biometrika 41, 1954.
    """

    def _begin(self, model: AutoRegression, series: int, dtype: DTypeLike = np.float64) -> Evidence:
        return {"sums": np.zeros((2, series), dtype)}

    def _sweep(self, model: AutoRegression, evidence: Evidence, values: Array) -> Array:
        return both_ways(evidence, (values - model.mean) / model.deviation)

    def _forget(self, evidence: Evidence, series: Series = EVERY) -> None:
        evidence["sums"][:, series] = 0.0


def both_ways(evidence: Evidence, z: Array) -> Array:
    """The larger one of the sums of `z` and of `-z`, `[steps, series]`; changes `evidence`."""
    sums = evidence["sums"]
    steps = np.stack([z, -z], axis=1).astype(sums.dtype, copy=False)
    steps -= _SLACK
    for step in steps:
        step += sums
        sums = np.maximum(step, 0.0, out=step)
    evidence["sums"] = sums.copy()
    larger: Array = steps.max(axis=1)
    return larger
