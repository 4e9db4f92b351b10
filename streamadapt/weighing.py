"""Which frames of a step belong to which row, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamadapt.bank import State
from streamadapt.estimators import Estimator
from streamadapt.layout import BankLayout
from streamadapt.ops.reduce import FrameMoments, frame_distances, frame_trust, shows_outliers
from streamadapt.taps.step import Settling
from streamadapt.transfer import upload


@dataclass(frozen=True, eq=False)
class StepRows:
    """Which rows a step touches, and which batch entry belongs to which of them.

    Attributes:
        rows: bank rows, each once.
        entries: index into `rows` for each batch entry; None when there is one row.
        elapsed_seconds: camera time since each row's previous frames.
        valid: the first so many entries are frames, the rest is padding; None: all are.
        batch: how many entries; None where that cannot be told.
        quality: `[entries]` float64, 0 for frames that are no picture; None: all are.
        gated: `[rows]`, how many are not.
        held: which of `rows` are not to be changed; None: none.
        ids: what each frame may be known by later; None: none may.
    """

    rows: Sequence[int]
    entries: Sequence[int] | None
    elapsed_seconds: Sequence[float]
    valid: int | None = None
    batch: int | None = None
    quality: Tensor | None = None
    gated: Tensor | None = None
    held: tuple[bool, ...] | None = None
    ids: Sequence[Hashable | None] | None = None


class FrameWeighing:
    """What the frames of a step weigh.

    Args:
        layout: the bank's.
        estimator: says whether outlying frames count less, and whether it asks for time.
        device: where the bank lives.
    """

    def __init__(self, layout: BankLayout, estimator: Estimator, device: torch.device) -> None:
        self._layout, self._device = layout, device
        self._robust, self._uses_time = estimator.robust, estimator.uses_time
        with torch.inference_mode(False):
            self._no_time = torch.zeros(1, 1, dtype=torch.float64, device=device)
        self._ones: Tensor | None = None

    def weights(self, where: StepRows, entries: int, settling: Settling | None) -> Tensor:
        """Membership of frames in rows, `[rows, entries]` float64; padding belongs to none."""
        weights = self._membership(where, entries)
        if where.valid is not None:
            weights = weights.clone()
            weights[:, where.valid :] = 0.0
        if where.quality is not None:
            weights = weights * where.quality
        if settling is not None and settling.weights is not None:
            weights = weights * settling.weights
        return weights

    def _membership(self, where: StepRows, entries: int) -> Tensor:
        if where.entries is None:
            if self._ones is None or self._ones.shape[1] < entries:
                self._ones = torch.ones(1, entries, dtype=torch.float64, device=self._device)
            return self._ones[:, :entries]
        weights = torch.zeros(len(where.rows), entries, dtype=torch.float64)
        weights[torch.tensor(where.entries), torch.arange(entries)] = 1.0
        return upload(weights, self._device)

    def accepted(self, where: StepRows, frames: Tensor) -> Tensor:
        """How many of `frames`, `[rows, 1]`, may change a row: none where it is held."""
        if where.held is None:
            return frames
        free = torch.tensor([not one for one in where.held], dtype=torch.float64)
        return frames * upload(free.unsqueeze(1), self._device)

    def trust(
        self, observed: FrameMoments, weights: Tensor, state: State, settling: Settling | None
    ) -> Tensor | None:
        """How much each frame counts beside the others, `[entries]`; None: all alike."""
        if settling is not None:
            return settling.trust
        if not (self._robust and shows_outliers(weights.shape[1])):
            return None
        distances = frame_distances(
            observed,
            weights,
            state.moments,
            eps=self._layout.eps,
            mean_over_model=self._layout.mean_over_model,
        )
        return frame_trust(distances, weights)

    def elapsed(self, where: StepRows) -> Tensor:
        """Camera time since each row's previous frames, `[rows, 1]` float64."""
        if not self._uses_time:
            return self._no_time
        seconds = torch.tensor(where.elapsed_seconds, dtype=torch.float64)
        return upload(seconds.unsqueeze(1), self._device)
