"""Batch statistics shrunk to the source."""

from __future__ import annotations

import math
from typing import ClassVar

from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators.base import Estimator, Observation, Timing
from streamadapt.moments import Moments


class SourcePrior(Estimator):
    """`N/(N+n) source + n/(N+n) batch` for mean and variance.

    `n` is the number of the stream's frames in the batch; the source counts as `N` pseudo-frames.
    Variances are averaged without the between-term, as in the paper. Remembers nothing from batch
    to batch, and is synchronous for the same reason as `BatchStatistics`.

    Args:
        source_weight: `N`, in frames, at least 0. The paper uses 8 to 256; 16 suits batches of a
            few tens.

    Reference:
        Schneider et al., "Improving robustness against common corruptions by covariate shift
        adaptation", NeurIPS 2020, arXiv:2006.16971.
    """

    timings: ClassVar[frozenset[Timing]] = frozenset({"synchronous"})

    def __init__(self, source_weight: float = 16.0) -> None:
        if not (source_weight >= 0.0 and math.isfinite(source_weight)):
            raise ConfigurationError(
                f"`source_weight` must be finite and at least 0 frames, got {source_weight}."
            )
        self.source_weight = float(source_weight)

    def update(self, state: State, observed: Observation) -> State:
        """The weighted average of source and batch."""
        share = observed.frames / (observed.frames + self.source_weight).clamp(min=1e-300)
        source, batch = state.source, observed.moments
        return state.advance(
            Moments(
                state.moments.count + batch.count,
                source.mean + share * (batch.mean - source.mean),
                source.var + share * (batch.var - source.var),
            )
        )
