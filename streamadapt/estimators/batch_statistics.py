"""Prediction-time BatchNorm."""

from __future__ import annotations

from typing import ClassVar

from streamadapt.bank import State
from streamadapt.estimators.base import Estimator, Observation, Timing


class BatchStatistics(Estimator):
    """Normalises every batch with its own moments and remembers nothing.

    Strong on large shuffled batches; falls apart when a batch shows few classes, which is what
    video does. Each stream of a mixed batch uses its own frames only. Synchronous by nature: one
    batch late it would be another method.

    Reference:
        Nado et al., "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate
        Shift", 2020, arXiv:2006.10963.
    """

    timings: ClassVar[frozenset[Timing]] = frozenset({"synchronous"})

    def update(self, state: State, observed: Observation) -> State:
        """The batch's moments."""
        return state.advance(observed.moments)
