"""Exponential moving moments."""

from __future__ import annotations

from typing import Literal

import torch

from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators.base import Estimator, Observation
from streamadapt.estimators.memory import Memory
from streamadapt.moments import Moments

DEFAULT_HALF_LIFE_FRAMES = 360.0


class EMA(Estimator):
    """Moments of an exponentially fading window over the stream.

    With weight `a` of the new batch and `d = m_b - mu`::

        mu <- mu + a d
        v  <- (1-a) v + a v_b + a (1-a) d^2        rule="mixture"
        v  <- (1-a) v + a v_b n/(n-1)              rule="pytorch"

    The first is the exact variance of the mixture, so that in `(mean, second moment)` any error in
    the state fades as `(1-a)^n`. The second is what `nn.BatchNorm2d` computes while training: it
    leaves out the spread between batches and takes the unbiased batch variance.

    Give the memory as one of `momentum`, `half_life_frames`, `half_life_seconds`; with none of
    them the half-life is 360 frames, a weight of 0.03 for a batch of 16 and 0.12 for one of 64.

    Args:
        momentum: weight of each *new* batch in (0, 1], as in PyTorch.
        half_life_frames: frames after which an old frame counts half.
        half_life_seconds: the same in seconds of camera time.
        rule: which variance.

    Raises:
        ConfigurationError: not exactly one memory setting, or one out of range.
    """

    def __init__(
        self,
        momentum: float | None = None,
        *,
        half_life_frames: float | None = None,
        half_life_seconds: float | None = None,
        rule: Literal["mixture", "pytorch"] = "mixture",
    ) -> None:
        if momentum is None and half_life_frames is None and half_life_seconds is None:
            half_life_frames = DEFAULT_HALF_LIFE_FRAMES
        if rule not in ("mixture", "pytorch"):
            raise ConfigurationError(f'`rule` must be "mixture" or "pytorch", got {rule!r}.')
        self.memory = Memory(
            momentum=momentum,
            half_life_frames=half_life_frames,
            half_life_seconds=half_life_seconds,
        )
        self.rule = rule
        self.uses_time = self.memory.uses_time

    def update(self, state: State, observed: Observation) -> State:
        """Blend the batch in."""
        weight = self.memory.weight(observed)
        if self.rule == "mixture":
            return state.advance(state.moments.blend(observed.moments, weight))
        old, batch = state.moments, observed.moments
        return state.advance(
            Moments(
                old.count + batch.count,
                torch.lerp(old.mean, batch.mean, weight),
                torch.lerp(old.var, batch.unbiased_var, weight),
            )
        )

    def __repr__(self) -> str:
        return f"EMA({self.memory!r}, rule={self.rule!r})"
