"""What the guard may cost, and when it acts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamadapt.errors import ConfigurationError

Health = Callable[[Any], Tensor]
"""From a model's output to one number a frame, `[frames]`; more is better."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Keeps what is no picture out of the statistics, and takes back what hurts the answers.

    Adapted answers are compared with the source's, on some of the frames: a second forward on the
    source's statistics. Where they are estimated to be worse, updates stop (hold), the statistics
    are drawn halfway to the source (shrink), put back on a former state (rollback), and in the end
    on the source for a while (pin), as long as it stays so.

    Attributes:
        share: of the frames that are compared as a matter of routine, 64 at a time.
        margin: share of right answers that the adapted statistics must be estimated to lose.
        quality: keep black, saturated, frozen frames, and those of another shape, out of updates.
        health: judges answers of models that do not classify; None: class scores
            `[frames, classes, ...]` are judged, and other outputs are not.
        snapshots: former states that are kept of each stream, spaced out over its past; 4 at least.
        cooldown_seconds: camera time on the source after all else has failed; twice as long each
            time that it happens again, up to an hour.

    Raises:
        ConfigurationError: a value out of range.
    """

    share: float = 0.005
    margin: float = 0.05
    quality: bool = True
    health: Health | None = None
    snapshots: int = 6
    cooldown_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ConfigurationError(f"`share` must be between 0 and 1, got {self.share}.")
        if not 0.0 < self.margin < 1.0:
            raise ConfigurationError(f"`margin` must be between 0 and 1, got {self.margin}.")
        whole = isinstance(self.snapshots, int) and not isinstance(self.snapshots, bool)
        if not whole or self.snapshots < 4:
            raise ConfigurationError(
                f"`snapshots` must be a whole number of at least 4, got {self.snapshots}."
            )
        if not (self.cooldown_seconds > 0.0 and math.isfinite(self.cooldown_seconds)):
            raise ConfigurationError(
                f"`cooldown_seconds` must be positive and finite, got {self.cooldown_seconds}."
            )
