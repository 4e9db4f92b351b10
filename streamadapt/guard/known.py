"""What the guard knows of a stream, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamadapt.guard.ladder import GuardState


@dataclass(frozen=True)
class Health:
    """Adapted answers of a stream's latest frames.

    Attributes:
        entropy: mean, nats.
        classes: effective number answered.
        flips: share of neighbouring frames that are answered differently.
    """

    entropy: float
    classes: float
    flips: float


@dataclass(frozen=True)
class Guarded:
    """What the guard knows of a stream.

    Attributes:
        state: of its ladder.
        gain: estimated share of right answers won by adapting; NaN before a comparison.
        agreement: share of equal answers, adapted and source, in the latest one; NaN likewise.
        health: None before there is any.
    """

    state: GuardState
    gain: float = math.nan
    agreement: float = math.nan
    health: Health | None = None
