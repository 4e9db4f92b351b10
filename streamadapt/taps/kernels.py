"""What kernels that normalise and take moments in one pass are to a step, whatever they run on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from streamadapt.bank import Rows, StatisticsBank
from streamadapt.ops.collect import StagedMoments
from streamadapt.taps.statistics import RowStatistics
from streamadapt.taps.step import Step


class Normalisation(Protocol):
    """One step's."""

    def __call__(
        self,
        index: int,
        x: Tensor,
        residual: Tensor | None = None,
        low: float = -math.inf,
        high: float = math.inf,
        in_place: bool = False,
    ) -> Tensor | None:
        """Normalise a layer's input, add to it, clamp it; and stage its moments.

        Args:
            index: of the layer.
            x: `[frames, channels, *spatial]`.
            residual: of `x`'s shape.
            low: least value of the result.
            high: largest value of the result.
            in_place: write the result over `x`.

        Returns:
            The result; None, and nothing done, where that is not possible.
        """

    def observe(self, index: int, x: Tensor) -> bool:
        """Write moments of every frame of a tensor to the step's room, and do nothing else.

        Args:
            index: of the layer that it belongs to.
            x: `[frames, channels, *spatial]`.

        Returns:
            Whether there is a kernel for it, and room.
        """

    def moments(self, index: int, x: Tensor) -> StagedMoments | None:
        """Moments of every frame of a tensor, and nothing else; None: there is no kernel for it.

        Args:
            index: of the layer that it belongs to.
            x: `[frames, channels, *spatial]`.
        """

    def finish(self) -> None:
        """The forward has ended; moments are to be where commits look for them."""


class Tables(Protocol):
    """Statistics of rows in the form that kernels normalise with."""

    @property
    def plain(self) -> Sequence[bool]:
        """Which layers are PyTorch's own."""

    @property
    def name(self) -> str:
        """How layers are normalised, in words."""

    def serves(self, device: torch.device) -> bool:
        """Whether there are kernels for models on a device."""

    def refresh(self, device: torch.device) -> None:
        """Look at the layers' weights, which may have been changed since the last step."""

    def arm(
        self,
        step: Step,
        bank: StatisticsBank,
        rows: Rows,
        *,
        statistics: RowStatistics | None,
        bound: bool,
        now: bool,
        source: bool,
    ) -> Normalisation:
        """What normalises in a forward that is about to run.

        Args:
            step: of the forward.
            bank: where the statistics are.
            rows: of the step.
            statistics: as far as inputs are moved, or single frames corrected.
            bound: the layers hold the row's statistics, not the source's.
            now: what layers are normalised with depends on the frames themselves.
            source: normalise as the source.
        """
