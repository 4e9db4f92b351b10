"""How fast an estimate forgets, in the unit its user thinks in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamadapt.errors import ConfigurationError
from streamadapt.estimators.base import Observation

MAX_SECONDS_PER_FRAME = 1.0
"""A frame stands for at most this much camera time: a camera that comes back after an hour brings
one frame, not an hour of evidence."""


class Memory:
    """The weight of a new batch, from exactly one of three settings.

    - `momentum`: the weight of every batch, whatever its size, as in PyTorch.
    - `half_life_frames`: after so many frames an old frame counts half;
      `a = 1 - 2**(-frames / half_life)`.
    - `half_life_seconds`: the same in camera time, so that 25 frames a second one by one and 5 a
      second in batches of 16 mean the same.
    """

    def __init__(
        self,
        *,
        momentum: float | None = None,
        half_life_frames: float | None = None,
        half_life_seconds: float | None = None,
    ) -> None:
        given = {
            name: value
            for name, value in (
                ("momentum", momentum),
                ("half_life_frames", half_life_frames),
                ("half_life_seconds", half_life_seconds),
            )
            if value is not None
        }
        if len(given) != 1:
            raise ConfigurationError(
                "Give exactly one of `momentum`, `half_life_frames` and `half_life_seconds`, got "
                + (" and ".join(f"`{name}`" for name in given) or "none")
                + "."
            )
        (self.unit, self.value) = next(iter(given.items()))
        if self.unit == "momentum" and not 0.0 < self.value <= 1.0:
            raise ConfigurationError(
                f"`momentum` must be in (0, 1], got {self.value}. "
                "To keep the source statistics, use Frozen()."
            )
        if self.unit != "momentum" and not (self.value > 0.0 and math.isfinite(self.value)):
            raise ConfigurationError(
                f"`{self.unit}` must be positive and finite, got {self.value}."
            )

    @property
    def uses_time(self) -> bool:
        """Whether camera time decides the weight."""
        return self.unit == "half_life_seconds"

    def weight(self, observed: Observation) -> Tensor:
        """The weight of this batch for each row, `[rows, 1]` float64 in [0, 1]."""
        if self.unit == "momentum":
            return torch.full_like(observed.frames, self.value)
        if self.unit == "half_life_frames":
            spent = observed.frames
        else:
            longest = observed.frames * MAX_SECONDS_PER_FRAME
            spent = torch.minimum(observed.elapsed_seconds, longest)
        return -torch.expm1(spent * (-math.log(2.0) / self.value))

    def __repr__(self) -> str:
        return f"{self.unit}={self.value:g}"
