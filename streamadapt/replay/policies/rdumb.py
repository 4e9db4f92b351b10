"""RDumb: ETA that starts over every so many batches."""

from __future__ import annotations

from torch import Tensor

from streamadapt.replay.policies.eata import EATAPolicy
from streamadapt.replay.policies.gradient import require


class RDumbPolicy(EATAPolicy):
    """Learns as ETA does and forgets everything on a schedule, before it can collapse.

    The rule is that of `EATAPolicy` with `fisher_alpha=0`. Before batches `reset_every + 1`,
    `2 reset_every + 1`, ... scale, shift, momentum and the average of the predictions learned from
    go back to the start; the reset shows as `RolledBack(reason="schedule")`. Every batch counts,
    whether it was learned from or not, as in the official code.

    Defaults are the official code's for ImageNet (batches of 64), but for the entropy margin: that
    code has `E0 = ln(1000)/2 - 1`, which is `0.355 ln C` there and does not carry over to other C;
    here it is ETA's `0.4 ln C`. Set `e_margin=0.355` for the official figure. There are no
    official values for CIFAR; ETA's are `learning_rate=0.005, d_margin=0.4`.

    Args:
        name: what tables and charts call it.
        learning_rate: > 0.
        momentum: in [0, 1).
        e_margin: as a share of ln C, in (0, 1].
        d_margin: largest cosine with what was already learned, > 0.
        reset_every: batches, at least 1.

    Reference:
        Press et al., "RDumb: A simple approach that questions our progress in continual test-time
        adaptation", NeurIPS 2023, arXiv:2306.05401.
    """

    def __init__(
        self,
        name: str = "rdumb",
        *,
        learning_rate: float = 2.5e-4,
        momentum: float = 0.9,
        e_margin: float = 0.4,
        d_margin: float = 0.05,
        reset_every: int = 1000,
    ) -> None:
        require(reset_every >= 1, "reset_every", "be at least 1 batch", reset_every)
        super().__init__(
            name,
            learning_rate=learning_rate,
            momentum=momentum,
            e_margin=e_margin,
            d_margin=d_margin,
            fisher_alpha=0.0,
        )
        self.description = f"RDumb, reset every {reset_every} batches: {self.description}"
        self.reset_every = reset_every
        self._since_reset = 0

    def forget(self) -> None:
        """The schedule starts over as well."""
        super().forget()
        self._since_reset = 0

    def adapt(self, batch: Tensor) -> Tensor:
        """Start over if it is time, then one batch of ETA."""
        if self._since_reset >= self.reset_every:
            self.roll_back(reason="schedule")
        self._since_reset += 1
        return super().adapt(batch)
