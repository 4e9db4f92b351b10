"""What `collect` leaves behind for the commit."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StagedMoments(NamedTuple):
    """Mean and inverse standard deviation per (frame, channel): `[frames, channels]`, fp32.

    The inverse deviation is what the fastest kernel returns, and unlike the variance it does not
    leave fp32's range: infinite where all values are equal, zero where they overflow.
    """

    mean: Tensor
    inverse: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and population variance, float64."""
        return self.mean.double(), self.inverse.double().pow(-2.0)
