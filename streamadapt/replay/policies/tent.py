"""Tent: batch statistics, and scale and shift that lower the entropy of the answers."""

from __future__ import annotations

from torch import Tensor

from streamadapt.replay.policies.entropy import entropy
from streamadapt.replay.policies.gradient import GradientPolicy, Optimizer, Statistics


class TentPolicy(GradientPolicy):
    """Makes the model surer of what it sees, one gradient step a batch.

    With gamma, beta the scale and shift of all BatchNorm layers, which normalise by the batch::

        L = (1/B) sum_i H(softmax f(x_i; gamma, beta)),    H(p) = -sum_c p_c ln p_c
        (gamma, beta) <- optimiser step on dL/d(gamma, beta)

    The answer is that of the forward before the step.

    Defaults are the official example's for CIFAR-10-C: Adam at 1e-3, one step, batches of 200. For
    ImageNet the paper has SGD with momentum 0.9 at 2.5e-4 and batches of 64:
    `optimizer="sgd", learning_rate=2.5e-4`. The official code adapts `BatchNorm2d` only and leaves
    dropout on; here every BatchNorm learns and dropout is off. A layer with a single value per
    channel is normalised by the source statistics; a batch whose loss is not finite changes
    nothing.

    Args:
        name: what tables and charts call it.
        learning_rate: > 0.
        optimizer: `"adam"` with betas (0.9, 0.999), or `"sgd"`.
        momentum: of SGD, in [0, 1); Adam ignores it.
        statistics: `"batch"` is the paper's; `"source"` keeps the source statistics and learns
            scale and shift alone, which is another method.

    Reference:
        Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021,
        arXiv:2006.10726.
    """

    def __init__(
        self,
        name: str = "tent",
        *,
        learning_rate: float = 1e-3,
        optimizer: Optimizer = "adam",
        momentum: float = 0.9,
        statistics: Statistics = "batch",
    ) -> None:
        super().__init__(
            name,
            f"Tent, {statistics} statistics, {optimizer} at {learning_rate:g}",
            learning_rate=learning_rate,
            optimizer=optimizer,
            momentum=momentum,
            statistics=statistics,
        )

    def adapt(self, batch: Tensor) -> Tensor:
        """One forward, one step."""
        scores: Tensor = self.model(batch)
        gradients = self.gradients(entropy(scores).mean())
        if gradients is not None:
            self.descend(gradients)
        return scores
