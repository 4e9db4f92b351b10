"""What a commit by kernels did, and who does one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from streamadapt.bank import Rows
from streamadapt.moments import Moments
from streamadapt.ops.reduce import FrameMoments
from streamadapt.taps.step import Settling


@dataclass(frozen=True, eq=False)
class Written:
    """What kernels did; see `Committed`."""

    verdict: Tensor
    moments: Moments
    frames: Tensor
    trust: Tensor | None
    phase: Tensor | None


@dataclass(frozen=True, eq=False)
class Committed:
    """What a step brought to the bank.

    Attributes:
        verdict: the bank's, `[rows]`: see `StatisticsBank.commit`.
        moments: of each row's accepted frames, `[rows, channels]` float64; `count` is `frames`.
        frames: `[rows, 1]` float64, accepted frames.
        positions: `[layers]` float64, of one frame; zero where a layer was not executed.
        weights: `[rows, entries]` float64, which frames were asked of which row, without those
            whose features were not finite.
        trust: `[entries]` float64, how much each frame counted; None: all alike.
        healthy: `[rows, 1]` float64, see `Observation`.
        phase: `[rows]` float64, the rows' phases after it; None where the estimator has none.
    """

    verdict: Tensor
    moments: Moments
    frames: Tensor
    positions: Tensor
    weights: Tensor
    trust: Tensor | None
    healthy: Tensor | None
    phase: Tensor | None


class KernelCommit(Protocol):
    """Reduces a step's frames, moves an estimator on, and writes the bank.

    Attributes:
        device_type: where it does so.
    """

    device_type: str

    def __call__(
        self,
        rows: Rows,
        observed: FrameMoments,
        weights: Tensor,
        *,
        elapsed: Tensor,
        held: Sequence[bool] | Tensor | None,
        settling: Settling | None = None,
        healthy: Tensor | None = None,
    ) -> Written | None:
        """Commit what a step showed in all layers.

        Args:
            rows: of the bank; in a step that is captured, a tensor.
            observed: moments of the frames, in all layers.
            weights: `[rows, frames]` float64.
            elapsed: `[rows, 1]` float64, camera time since each row's previous frames.
            held: which rows are not to be changed; None: none; in a step that is captured, a tensor
                `[rows, 1]`, zero for those.
            settling: the step was such a pass.
            healthy: the observation's, of such a pass.

        Returns:
            What it did; None, and nothing was changed, where this step is not for it.
        """
