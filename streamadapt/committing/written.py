"""What a commit by kernels did, and who does one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from streamadapt.bank import Rows
from streamadapt.moments import Moments
from streamadapt.ops.reduce import FrameMoments


@dataclass(frozen=True, eq=False)
class Written:
    """What a commit did; see `engine.Committed`."""

    verdict: Tensor
    moments: Moments
    frames: Tensor
    trust: Tensor | None
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
    ) -> Written | None:
        """Commit what a step showed, which must not be a settling pass, in all layers.

        Args:
            rows: of the bank; in a step that is captured, a tensor.
            observed: moments of the frames, in all layers.
            weights: `[rows, frames]` float64.
            elapsed: `[rows, 1]` float64, camera time since each row's previous frames.
            held: which rows are not to be changed; None: none; in a step that is captured, a tensor
                `[rows, 1]`, zero for those.

        Returns:
            What it did; None, and nothing was changed, where this step is not for it.
        """
