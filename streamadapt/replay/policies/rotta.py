"""RoTTA's robust statistics: an average that learns from a category-balanced memory only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamadapt.arguments import check_at_least_one
from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import Estimator, Observation
from streamadapt.moments import Moments
from streamadapt.replay.policies.engine import ONE_ROW, EnginePolicy, check_share
from streamadapt.replay.policies.memory import BalancedMemory


class RoTTAPolicy(EnginePolicy):
    """Running statistics, updated from a memory that no class can fill.

    Every batch is answered with the running statistics `r` and offered to the memory
    (`BalancedMemory`) frame by frame, with the predictions of that answer. Every
    `update_every_frames` frames the memory goes through the network; each layer takes its moments
    `b` in, `r <- (1 - momentum) r + momentum b` for mean and variance, and normalises by the new
    `r` what it passes on. As published there is no between-term, and `b` has the population
    variance.

    Departures: statistics only. The published method also trains the affine weights, a student on
    augmented frames of the memory and a teacher as its moving average; this is its teacher with
    the weights left alone. Entropies are exact, and frames whose prediction is not finite are not
    remembered.

    Args:
        name: what tables and charts call it.
        momentum: weight of the memory in each update.
        capacity: frames in the memory.
        update_every_frames: frames between updates.
        timeliness: weight of age in a frame's score.
        uncertainty: weight of entropy in a frame's score.

    Reference:
        Yuan, Xie, Li, "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023,
        arXiv:2303.13899.
    """

    def __init__(
        self,
        name: str = "rotta",
        *,
        momentum: float = 0.05,
        capacity: int = 64,
        update_every_frames: int = 64,
        timeliness: float = 1.0,
        uncertainty: float = 1.0,
    ) -> None:
        check_share(momentum=momentum)
        check_at_least_one(capacity=capacity, update_every_frames=update_every_frames)
        if not (0.0 <= timeliness < float("inf") and 0.0 <= uncertainty < float("inf")):
            raise ConfigurationError(
                "`timeliness` and `uncertainty` must be finite and at least 0, got "
                f"{timeliness} and {uncertainty}."
            )
        super().__init__(
            name,
            f"robust BatchNorm (momentum {momentum:g}) from a balanced memory of {capacity} "
            f"frames, every {update_every_frames} frames",
        )
        self.momentum, self.capacity = momentum, capacity
        self.update_every_frames = update_every_frames
        self.timeliness, self.uncertainty = timeliness, uncertainty

    def prepare(self) -> None:
        """Start on the source, with an empty memory."""
        self.wrap(bound=False, estimator=_RobustBatchNorm(self.momentum))
        self.engine.set_bound(True)
        self._memory: BalancedMemory | None = None
        self._offered = 0

    def finish(self) -> None:
        """Drop the models and the memory."""
        super().finish()
        self._memory = None

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer, remember, and update when it is time."""
        scores: Tensor = self.model(batch)
        if self._memory is None:
            self._memory = BalancedMemory(
                self.capacity,
                classes=scores.shape[1],
                timeliness=self.timeliness,
                uncertainty=self.uncertainty,
            )
        entropies = torch.special.entr(scores.double().softmax(dim=1)).sum(dim=1).tolist()
        for frame, label, entropy in zip(
            batch, scores.argmax(dim=1).tolist(), entropies, strict=True
        ):
            self._memory.offer(frame, label=label, entropy=entropy)
            self._offered += 1
            if self._offered % self.update_every_frames == 0 and len(self._memory) > 0:
                self._update(self._memory.frames())
        return scores

    def _update(self, frames: Tensor) -> None:
        # Unbound, the model holds the source and its inputs are moved: a layer may then normalise
        # by what it has only just seen. Bound, as for all answers, that would cost a pass a layer.
        self.engine.set_bound(False)
        with self.engine.armed(ONE_ROW, entries=len(frames), observe=True) as step:
            self.model(frames)
        self.engine.commit(step, ONE_ROW)
        self.engine.set_bound(True)


class _RobustBatchNorm(Estimator):
    """`(1 - momentum) running + momentum batch`, for mean and population variance."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum

    def update(self, state: State, observed: Observation) -> State:
        old, seen = state.moments, observed.moments
        return state.advance(
            Moments(
                old.count + seen.count,
                torch.lerp(old.mean, seen.mean, self.momentum),
                torch.lerp(old.var, seen.var, self.momentum),
            )
        )
