"""LAME: answers corrected by their neighbours in the batch; the model is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamadapt.arguments import check_at_least_one
from streamadapt.errors import UnsupportedModelError
from streamadapt.replay.policies.base import BasePolicy
from streamadapt.replay.policies.engine import check_positive

_FLOOR = 1e-10  # added to every probability, as published


class LAMEPolicy(BasePolicy):
    """Moves each answer towards those of the frames of its batch that look like it.

    With `q_b` the model's probabilities and `w_bc = 1` where frame `c` is among the `neighbours`
    nearest of `b` (Euclidean, on penultimate features of unit length), else 0::

        z_b <- q_b exp(sum_c w_bc z_c) / normaliser        from z = q

    until the energy `sum_b z_b (ln z_b - ln q_b) - sum_bc w_bc z_b z_c` changes by less than
    `tolerance` of itself. The answer is `ln z`; a batch of one is answered as it is. Penultimate
    features are the input of the `nn.Linear` that runs last.

    Departures: computed in float64, where the published tolerance means what it says; a frame is
    never its own neighbour, even beside an exact copy.

    Args:
        name: what tables and charts call it.
        neighbours: how many.
        max_steps: iterations at most.
        tolerance: relative.

    Reference:
        Boudiaf et al., "Parameter-free Online Test-time Adaptation", CVPR 2022, arXiv:2201.05718.
    """

    def __init__(
        self,
        name: str = "lame",
        *,
        neighbours: int = 5,
        max_steps: int = 100,
        tolerance: float = 1e-8,
    ) -> None:
        check_at_least_one(neighbours=neighbours, max_steps=max_steps)
        check_positive(tolerance=tolerance)
        super().__init__(name, f"LAME, {neighbours} neighbours")
        self.neighbours, self.max_steps, self.tolerance = neighbours, max_steps, tolerance
        self._features: Tensor | None = None

    def prepare(self) -> None:
        """Listen at the linear layers."""
        layers = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no nn.Linear, whose input LAME would compare. "
                "Leave LAME out for this model."
            )
        for layer in layers:
            layer.register_forward_pre_hook(self._keep)

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer, and correct."""
        return self.predict(batch)

    def predict(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer, and correct: nothing is remembered."""
        scores: Tensor = self.model(batch)
        features, self._features = self._features, None
        if len(scores) < 2:
            return scores
        if features is None or len(features) != len(scores):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no penultimate features of each frame: its last "
                "nn.Linear did not run on one row a frame. Leave LAME out for this model."
            )
        near = self._affinity(F.normalize(features.double().flatten(1)))
        return self._corrected(scores.double().softmax(dim=1), near).to(scores.dtype)

    def _affinity(self, features: Tensor) -> Tensor:
        """Who is whose neighbour, `[frames, frames]`, from features of unit length."""
        # Of unit vectors, the nearest have the largest product.
        product = (features @ features.T).fill_diagonal_(-torch.inf)
        nearest = product.topk(min(self.neighbours, len(features) - 1), dim=1).indices
        return torch.zeros_like(product).scatter_(1, nearest, 1.0)

    def _corrected(self, probabilities: Tensor, affinity: Tensor) -> Tensor:
        """Logarithms of the corrected probabilities."""
        unary = (probabilities + _FLOOR).log()
        z, before = unary.softmax(dim=1), torch.inf
        for step in range(self.max_steps):
            pairwise = affinity @ z
            log_z = (unary + pairwise).log_softmax(dim=1)
            z = log_z.exp()
            energy = float((z * (log_z - unary - pairwise)).sum())
            if step > 1 and abs(energy - before) <= self.tolerance * abs(before):
                break
            before = energy
        return log_z

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0]
