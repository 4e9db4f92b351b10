"""Which frames of a step belong to which row, and how much each of them counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamadapt.bank import Rows, State
from streamadapt.estimators import Estimator
from streamadapt.events import Rejection
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
        control: where the device finds all this in a step that is done again without the host;
            nothing else holds then but the number of rows and entries.
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
    control: StepControl | None = None

    @property
    def places(self) -> Rows:
        """The rows, where the bank looks for them."""
        return self.rows if self.control is None else self.control.rows

    def row_of_entries(self, device: torch.device) -> Tensor | None:
        """`entries` on the device, `[entries]` int64; None when there is one row."""
        if self.control is not None:
            return self.control.index
        if self.entries is None:
            return None
        return upload(torch.tensor(self.entries, dtype=torch.long), device)


@dataclass(frozen=True, eq=False)
class StepControl:
    """What a captured step obeys, all on the device.

    Attributes:
        rows: of the bank, each once; the same for ever where there is one.
        numbers: the same, `[rows]` int64.
        index: `[entries]` int64, into `rows`; None when there is one row.
        weights: `[rows, entries]` float64, 1 for frames of a row, 0 for others and for padding.
        elapsed: `[rows, 1]` float64, camera time since each row's previous frames.
        allowed: `[rows, 1]` float64, 0 for rows that are not to be changed.
    """

    rows: Rows
    numbers: Tensor
    index: Tensor | None
    weights: Tensor
    elapsed: Tensor
    allowed: Tensor


def without(
    where: StepRows, rejected: Sequence[Rejection | None], device: torch.device
) -> tuple[StepRows, Mapping[tuple[int, Rejection], int]]:
    """A step in which some frames are answered only.

    Args:
        where: its rows.
        rejected: why, for each real frame; None for those that count.
        device: where the bank lives.

    Returns:
        The rows, and how many frames there are by index into them and reason.
    """
    padding = [1.0] * ((where.batch or 0) - len(rejected))
    weights = [float(reason is None) for reason in rejected] + padding
    counts = Counter(
        (0 if where.entries is None else where.entries[index], reason)
        for index, reason in enumerate(rejected)
        if reason is not None
    )
    gated = [0] * len(where.rows)
    for (place, _), count in counts.items():
        gated[place] += count
    with torch.inference_mode(False):
        quality = upload(torch.tensor(weights, dtype=torch.float64), device)
        return replace(where, quality=quality, gated=upload(torch.tensor(gated), device)), counts


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
        if where.control is not None:
            weights = where.control.weights
        else:
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
        if where.control is not None:
            return frames * where.control.allowed
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
        if where.control is not None:
            return where.control.elapsed
        seconds = torch.tensor(where.elapsed_seconds, dtype=torch.float64)
        return upload(seconds.unsqueeze(1), self._device)
