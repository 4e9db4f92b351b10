"""Evidence for a shift of an autoregressive score, against all moments it may have begun."""

from __future__ import annotations

import numpy as np

from streamadapt.drift.autoregression import AutoRegression
from streamadapt.drift.calibrated import Array, CalibratedDetector, Evidence

_SIZES = np.array([1.0, 2.0, 4.0, -1.0, -2.0, -4.0])  # shifts, in deviations of the score
_LARGEST_INNOVATION = 6.0  # in deviations; further out, a value says no more
_NOTHING = -1e300  # the logarithm of no evidence, as JSON can have it


class EDetector(CalibratedDetector):
    """A mixture e-detector on the score's innovations.

    What is new in each value, its difference from what the past ones predict, is independent.
    A shift of the score shows in it as a jump and a remainder: at the first value the whole shift,
    then what the prediction has not made up for. Each size of shift, up and down, abrupt and
    gradual (the remainder alone), is a likelihood ratio that is summed over all moments at which it
    may have begun, and the statistic is the logarithm of their mean. Under correlation of 0.9 and
    more this finds an abrupt shift by its jump, which a test on the score itself can't tell from
    the wandering.

    With a known model `ln(expected_run_steps)` is a threshold that holds; the bootstrap's is near
    it, and holds with an estimated one.

    Reference:
        Shin, Ramdas, Rinaldo, "E-detectors: a nonparametric framework for sequential change
        detection", 2022, arXiv:2203.03532. The signature of a shift is that of Vander Wiel,
        "Monitoring processes that wander using integrated moving average models", 1996.
    """

    def _begin(self, model: AutoRegression, series: int) -> Evidence:
        kinds = len(_SIZES)
        return {
            "past": np.zeros((model.order, series)),
            # By age of the shift: this step's, ..., older than the model's memory; then gradual.
            "ratios": np.full((model.order + 2, kinds, series), _NOTHING),
        }

    def _take(self, model: AutoRegression, evidence: Evidence, values: Array) -> Array:
        order, past, ratios = model.order, evidence["past"], evidence["ratios"]
        phi = np.atleast_2d(model.phi).T  # [order, series or 1]
        deviations = values - model.mean
        innovation = (deviations - (phi * past).sum(axis=0)) / model.innovation
        innovation = innovation.clip(-_LARGEST_INNOVATION, _LARGEST_INNOVATION)
        evidence["past"] = np.concatenate([deviations[None], past])[:order]

        whole = _SIZES[:, None] * (model.deviation / model.innovation)
        left = 1.0 - np.concatenate([np.zeros_like(phi[:1]), phi.cumsum(axis=0)])
        signature = left[:, None] * whole  # [order + 1, kinds, series or 1]
        signature = np.concatenate([signature, signature[-1:]])
        held = np.empty_like(ratios)
        held[0] = 0.0
        held[1:order] = ratios[: order - 1]
        held[order] = np.logaddexp(ratios[order - 1], ratios[order])
        held[order + 1] = np.logaddexp(ratios[order + 1], 0.0)
        ratios = held + signature * (innovation - 0.5 * signature)
        evidence["ratios"] = ratios
        largest = ratios.max(axis=(0, 1))
        total = np.exp(ratios - largest).sum(axis=(0, 1))
        statistic: Array = largest + np.log(total / (2 * len(_SIZES)))
        return statistic

    def _forget(self, evidence: Evidence) -> None:
        evidence["ratios"][:] = _NOTHING
