"""Cumulative moments."""

from __future__ import annotations

import math

import torch

from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators.base import Estimator, Observation
from streamadapt.moments import Moments


class Welford(Estimator):
    """The exact moments of everything seen so far, batch by batch.

    AdaBN's online form with the right denominator: `mu += d k / (n + k)`. Over a given sequence of
    inputs the result is the population's moments, however the sequence is cut into batches; the
    bank keeps 48 bits, so that it does not stall. Inside a lagged model each layer sees what
    earlier commits let through, and there is no such guarantee: see `adabn(method="layerwise")`.

    Args:
        max_frames: cap of the memory. Once reached, a batch of `k` frames has weight
            `k / (max_frames + k)`: an EMA that follows the stream. None: cumulative for ever,
            which stops adapting after a while.
        prior_frames: the source counts as so many frames at the start. 0: the first batch
            replaces the source outright, which jolts a deep model in lagged timing.

    Raises:
        ConfigurationError: a negative or non-finite setting, or a prior larger than the cap.
    """

    compensated = True
    counted = True

    def __init__(self, max_frames: float | None = None, *, prior_frames: float = 0.0) -> None:
        if max_frames is not None and not (max_frames > 0 and math.isfinite(max_frames)):
            raise ConfigurationError(
                f"`max_frames` must be a positive number of frames or None, got {max_frames}."
            )
        if not (prior_frames >= 0 and math.isfinite(prior_frames)):
            raise ConfigurationError(
                f"`prior_frames` must be finite and at least 0, got {prior_frames}."
            )
        if max_frames is not None and prior_frames > max_frames:
            raise ConfigurationError(
                f"`prior_frames` ({prior_frames:g}) exceeds `max_frames` ({max_frames:g}): the "
                "prior would be cut to the cap. Lower it, or raise the cap."
            )
        self.max_frames = max_frames
        self.prior_frames = prior_frames

    def update(self, state: State, observed: Observation) -> State:
        """Merge the batch by Chan's formula, with the memory capped first."""
        old, batch = state.moments, observed.moments
        frames = torch.where(observed.frames > 0, observed.frames, 1.0)
        positions = batch.count / frames  # of one frame, by layer
        count = torch.where(old.count > 0, old.count, self.prior_frames * positions)
        if self.max_frames is not None:
            count = torch.minimum(count, self.max_frames * positions)
        return state.advance(Moments(count, old.mean, old.var).merge(batch))
