"""A moving average that listens to how far the batch is from it."""

from __future__ import annotations

import math

import torch

from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators.base import Estimator, Observation
from streamadapt.moments import Moments

_TINY = 1e-300  # two constant channels are no distance apart, not 0 / 0


class MECTA(Estimator):
    """An EMA whose momentum is the drift itself: still while nothing changes, quick when it does.

    For each layer, with `KL` the symmetric divergence of two normal distributions::

        a  = 1 - exp(-scale mean_c KL(batch_c, running_c))
        KL = ((v_b + e + d^2) / (v + e) + (v + e + d^2) / (v_b + e)) / 2 - 1,   d = m_b - mu
        mu <- mu + a (m_b - mu),   v <- v + a (v_b - v)

    Variances without the between-term, as published. This is the method's statistics; its
    sparing of memory in backpropagation (no gradient where `a` is small, pruned channels) concerns
    methods that learn weights. Published in synchronous timing; lagged works as well.

    One departure: the published `e` is 1e-3 whatever the scale of a layer, here it is `floor`
    times the layer's mean source variance, so that the gate does not depend on units.

    Args:
        scale: how strongly drift opens the gate.
        floor: `e` as a fraction of the layer's mean source variance; it keeps channels that hardly
            vary from dominating the mean.

    Reference:
        Hong et al., "MECTA: Memory-Economic Continual Test-Time Model Adaptation", ICLR 2023,
        openreview.net/forum?id=N92hjSf5NNh.
    """

    def __init__(self, scale: float = 1.0, *, floor: float = 1e-3) -> None:
        for name, value in (("scale", scale), ("floor", floor)):
            if not (value > 0.0 and math.isfinite(value)):
                raise ConfigurationError(f"`{name}` must be positive and finite, got {value}.")
        self.scale, self.floor = float(scale), float(floor)

    def update(self, state: State, observed: Observation) -> State:
        """Blend the batch in, each layer as far as it has drifted."""
        old, batch = state.moments, observed.moments
        floor = self.floor * observed.layers.mean_over_layer(state.source.var)
        v, v_b = old.var + floor, batch.var + floor
        # The formula above over one denominator: nothing cancels when the two are close.
        apart = (v_b - v).square() + (batch.mean - old.mean).square() * (v + v_b)
        divergence = apart / (2.0 * v * v_b).clamp(min=_TINY)
        weight = -torch.expm1(-self.scale * observed.layers.mean_over_layer(divergence))
        return state.advance(
            Moments(
                old.count + batch.count,
                torch.lerp(old.mean, batch.mean, weight),
                torch.lerp(old.var, batch.var, weight),
            )
        )
