"""Batch statistics mixed with the source's in a fixed ratio."""

from __future__ import annotations

from typing import ClassVar

from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators.base import Estimator, Observation, Timing
from streamadapt.moments import Moments


class AlphaBN(Estimator):
    """`(1 - alpha) source + alpha batch` for mean and variance, whatever the size of the batch.

    Variances are averaged without the between-term `alpha (1 - alpha) (m_b - m_s)^2`, as published;
    the batch's is the population variance. Remembers nothing from batch to batch, and is
    synchronous for the same reason as `BatchStatistics`. The paper's `Core`, which also trains
    weights, is not part of it.

    Args:
        alpha: share of the batch, in (0, 1]. The paper writes the source's share, so that its 0.9
            is 0.1 here.

    Reference:
        You, Li, Zhao, "Test-time Batch Statistics Calibration for Covariate Shift", 2021,
        arXiv:2110.04065.
    """

    timings: ClassVar[frozenset[Timing]] = frozenset({"synchronous"})

    def __init__(self, alpha: float = 0.1) -> None:
        if not 0.0 < alpha <= 1.0:
            raise ConfigurationError(
                f"`alpha` must be in (0, 1], got {alpha}. To keep the source statistics, use "
                "Frozen()."
            )
        self.alpha = float(alpha)

    def update(self, state: State, observed: Observation) -> State:
        """The weighted average of source and batch."""
        source, batch = state.source, observed.moments
        return state.advance(
            Moments(
                state.moments.count + batch.count,
                source.mean + self.alpha * (batch.mean - source.mean),
                source.var + self.alpha * (batch.var - source.var),
            )
        )
