"""Evidence for a shift of an autoregressive score, against all moments it may have begun."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from streamadapt.drift.autoregression import AutoRegression
from streamadapt.drift.calibrated import EVERY, Array, CalibratedDetector, Evidence, Series
from streamadapt.drift.lagged import levels

_SIZES = np.array([[1.0], [-1.0], [2.0], [-2.0]])  # shifts, in deviations of the score
_WEIGHTS = np.array([[2.0], [2.0], [1.0], [1.0]]) / 6.0  # smaller ones need the evidence more
_GRADUAL = 0.25  # weight of the gradual ones
_LARGEST_INNOVATION = 6.0  # in deviations; further out, a value says no more
_MOST = {4: 1e30, 8: 1e300}  # evidence, by bytes of a number: times one more ratio it is finite


class EDetector(CalibratedDetector):
    """A mixture e-detector on the score's innovations.

    What is new in each value, its difference from what the past ones predict, is independent.
    A shift of the score shows in it as a jump and a remainder: at the first value the whole shift,
    then what the prediction has not made up for. Each size of shift, up and down, abrupt and
    gradual (the remainder alone), is a likelihood ratio that is summed over all moments at which it
    may have begun, and the statistic is the logarithm of their weighted mean. Under correlation of
    0.9 and more this finds an abrupt shift by its jump, which a test on the score itself can't tell
    from the wandering. A jump beyond six deviations of the innovations counts as six.

    With a known model `ln(expected_run_steps)` is a threshold that holds; the bootstrap's is near
    it, and holds with an estimated one.

    Reference:
        Shin, Ramdas, Rinaldo, "E-detectors: a nonparametric framework for sequential change
        detection", 2022, arXiv:2203.03532. The signature of a shift is that of Vander Wiel,
        "Monitoring processes that wander using integrated moving average models", 1996.
    """

    _made_for: tuple[object, object] = (None, None)

    def _begin(self, model: AutoRegression, series: int, dtype: DTypeLike = np.float64) -> Evidence:
        kinds = len(_SIZES)
        return {
            "past": np.zeros((model.order, series), dtype),  # deviations, the oldest first
            "level": np.zeros(series, dtype),
            # Weighted sums of likelihood ratios: of abrupt shifts by age, this step's first, ...
            "young": np.zeros((model.order, kinds, series), dtype),
            "old": np.zeros((kinds, series), dtype),  # ... of older ones, and of gradual ones
        }

    def _sweep(self, model: AutoRegression, evidence: Evidence, values: Array) -> Array:
        dtype = evidence["old"].dtype
        most = dtype.type(_MOST[dtype.itemsize])
        shifts, offsets = self._alternatives(model, dtype)
        innovations = _innovations(model, evidence, values)[:, None]

        def ratios(age: int) -> Array:
            """Of a value under shifts that began so many steps ago, `[steps, kinds, series]`."""
            out: Array = innovations * shifts[age]
            out -= offsets[age]
            return np.exp(out, out=out)

        # Above `most` it overflows, and is cut after it; ratios are too large to make it NaN.
        with np.errstate(over="ignore"):
            before, young = evidence["young"], np.empty_like(evidence["young"])
            begun = total = ratios(0)
            young[0] = begun[-1]
            for age in range(1, model.order):
                earlier = np.concatenate([before[age - 1 : age], begun[:-1]])
                begun = np.multiply(earlier, ratios(age), out=earlier)
                young[age] = begun[-1]
                total = total + begun
            fed = np.concatenate([before[-1:], begun[:-1]])
            fed += (_GRADUAL * _WEIGHTS).astype(dtype)
            # All but this was free of a loop over steps.
            old, summed = evidence["old"], ratios(model.order)
            for new, ratio in zip(fed, summed, strict=True):
                new += old
                ratio *= new
                old = ratio
            total = (total + summed).sum(axis=1)
        evidence["young"], evidence["old"] = np.minimum(young, most), np.minimum(old, most)
        statistic: Array = np.log(total.clip(np.finfo(dtype).tiny, most))
        return statistic

    def _alternatives(self, model: AutoRegression, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Shifts of the innovation, and half their squares less the logarithm of the weight."""
        if self._made_for != (model, dtype):
            shifts = _signature(model)
            offsets = 0.5 * shifts**2
            offsets[0] -= np.log((1.0 - _GRADUAL) * _WEIGHTS)
            self._shifts, self._offsets = shifts.astype(dtype), offsets.astype(dtype)
            self._made_for = model, dtype
        return self._shifts, self._offsets

    def _forget(self, evidence: Evidence, series: Series = EVERY) -> None:
        evidence["young"][..., series] = 0.0
        evidence["old"][..., series] = 0.0


def _innovations(model: AutoRegression, evidence: Evidence, values: Array) -> Array:
    """What is new in values, in deviations of what is, `[steps, series]`."""
    order, dtype = model.order, evidence["past"].dtype
    deviations = np.concatenate([evidence["past"], values - model.mean.astype(dtype)])
    evidence["past"] = deviations[len(values) :].copy()
    out = deviations[order:].copy()
    for lag in range(1, order + 1):
        out -= model.phi[..., lag - 1].astype(dtype) * deviations[order - lag : -lag]
    if model.level.any():
        after = levels(deviations[order:], evidence["level"], model.memory)
        out[1:] -= model.level.astype(dtype) * after[:-1]
        out[0] -= model.level.astype(dtype) * evidence["level"]
        evidence["level"] = after[-1].copy()
    out /= model.innovation.astype(dtype)
    innovations: Array = out.clip(-_LARGEST_INNOVATION, _LARGEST_INNOVATION)
    return innovations


def _signature(model: AutoRegression) -> Array:
    """Shift of the innovation by age of the score's, `[order + 1, kinds, series or 1]`."""
    phi = np.atleast_2d(model.phi).T  # [order, series or 1]
    left = 1.0 - np.concatenate([np.zeros_like(phi[:1]), phi.cumsum(axis=0)])
    whole = _SIZES * (model.deviation / model.innovation)
    shift: Array = (left[:, None] * whole).clip(-_LARGEST_INNOVATION, _LARGEST_INNOVATION)
    return shift
