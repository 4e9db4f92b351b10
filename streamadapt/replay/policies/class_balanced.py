"""Statistics averaged over predicted classes, so that frequent ones do not rule them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamadapt.errors import ConfigurationError
from streamadapt.moments import Moments
from streamadapt.ops.reduce import FrameMoments, reduce_frames
from streamadapt.replay.policies.engine import (
    ONE_ROW,
    EnginePolicy,
    check_positive,
    check_share,
)


class ClassBalancedPolicy(EnginePolicy):
    """One moving average of moments for each predicted class; the model gets their average.

    TRIBE's balanced BatchNorm. Each class starts as the source. With `m`, `q` the mean and the
    mean square of the frames of a batch that were predicted as class `k`, and `n_k` their number::

        a_k  = min(1, momentum_per_frame n_k)   or   1 - 2^(-n_k / half_life_frames)
        d_k  = a_k (m - m_k),   and alike for mean squares
        m_k <- m_k + (1 - gamma) d_k            classes that were predicted
        m_k <- m_k + gamma mean(d)              all classes; the mean is over those predicted
        model: mean = mean_k m_k,   variance = mean_k q_k - mean^2

    The variance is that of an even mixture of the classes, and every class's own is exact.

    Departures: statistics only, of TRIBE's three networks the one that answers, and its weights
    stay. Published, a second forward over the same frames updates layer after layer; here the
    forward that answers also yields the moments, one pass a batch, and they count from the next
    batch on. With `gamma` above 0 the published variances follow another formula, which agrees in
    mean; its spread of class means is divided by `classes - 1`.

    Args:
        name: what tables and charts call it.
        momentum_per_frame: the paper's eta; by default max(0.01, 0.0005 classes), as its authors
            advise.
        half_life_frames: in its place, frames of a class after which an old one counts half.
        gamma: share of each class's step that all classes take together, in [0, 1]; by default
            the published value for the nearest number of classes: 0 with 10, 0.1 with 100,
            0.5 with 1000.

    Reference:
        Su, Xu, Jia, "Towards Real-World Test-Time Adaptation: Tri-net Self-Training with Balanced
        Normalization", AAAI 2024, arXiv:2309.14949.
    """

    def __init__(
        self,
        name: str = "class_balanced",
        *,
        momentum_per_frame: float | None = None,
        half_life_frames: float | None = None,
        gamma: float | None = None,
    ) -> None:
        if momentum_per_frame is not None and half_life_frames is not None:
            raise ConfigurationError(
                "Give one of `momentum_per_frame` and `half_life_frames`, got both."
            )
        memory = "the published momentum"
        if momentum_per_frame is not None:
            check_share(momentum_per_frame=momentum_per_frame)
            memory = f"momentum {momentum_per_frame:g} a frame"
        if half_life_frames is not None:
            check_positive(half_life_frames=half_life_frames)
            memory = f"half-life {half_life_frames:g} frames"
        if gamma is not None and not 0.0 <= gamma <= 1.0:
            raise ConfigurationError(f"`gamma` must be in [0, 1], got {gamma}.")
        super().__init__(name, f"statistics balanced over predicted classes, {memory}")
        self.momentum_per_frame = momentum_per_frame
        self.half_life_frames = half_life_frames
        self.gamma = gamma

    def prepare(self) -> None:
        """Start on the source."""
        self.wrap(bound=True)
        self._origin = self.source()
        # Differences from the source of (mean, mean square about the source's mean). In these,
        # a mixture is a weighted sum and nothing cancels. [classes, 2, channels], in two parts:
        self._own: Tensor | None = None  # zero pages cost nothing until a class is seen
        self._common = self._origin.mean.new_zeros(2, len(self._origin.mean))
        self._average = torch.zeros_like(self._common)  # over the classes, both parts

    def finish(self) -> None:
        """Drop the models and the averages."""
        super().finish()
        self._own = None

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer, and count the frames towards the classes that they were given."""
        with self.engine.armed(ONE_ROW, entries=len(batch), observe=True) as step:
            scores: Tensor = self.model(batch)
        if any(step.positions):
            self._learn(step.all_moments(), scores)
        return scores

    def _learn(self, observed: FrameMoments, scores: Tensor) -> None:
        classes = scores.shape[1]
        if self._own is None:
            self._own = self._common.new_zeros(classes, *self._common.shape)
        present, member = torch.unique(scores.argmax(dim=1), return_inverse=True)
        weights = observed.mean.new_zeros(len(present), len(member))
        weights[member, torch.arange(len(member), device=member.device)] = 1.0
        seen = reduce_frames(observed, weights)  # without frames that are not finite
        offset = seen.moments.mean - self._origin.mean
        square = seen.moments.var + offset.square() - self._origin.var
        wanted = torch.stack([offset, square], dim=1)
        # A layer that did not run has no positions.
        share = self._share(seen.frames, classes) * (observed.positions > 0)
        step = share.unsqueeze(1) * (wanted - self._own[present] - self._common)

        gamma = self._spill(classes)
        together = step.sum(dim=0)
        spilled = gamma * together / (seen.frames > 0).sum().clamp(min=1)
        self._own.index_add_(0, present, step, alpha=1.0 - gamma)
        self._common += spilled
        self._average += (1.0 - gamma) / classes * together + spilled
        self._give()

    def _give(self) -> None:
        """Let the model read the average."""
        average = self.average
        row = self.engine.bank.data[0]
        row[0].copy_(average.mean)
        row[1].copy_(average.var)
        self.engine.binding.write_back()

    def _share(self, frames: Tensor, classes: int) -> Tensor:
        """Weight of a class's frames, `[classes present, 1]`."""
        if self.half_life_frames is not None:
            return 1.0 - torch.exp2(-frames / self.half_life_frames)
        momentum = self.momentum_per_frame
        if momentum is None:
            momentum = min(1.0, max(0.01, 0.0005 * classes))
        return (momentum * frames).clamp(max=1.0)

    def _spill(self, classes: int) -> float:
        if self.gamma is not None:
            return self.gamma
        if classes < 32:  # the geometric middle of 10 and 100
            return 0.0
        return 0.1 if classes < 316 else 0.5

    @property
    def average(self) -> Moments:
        """The balanced statistics, `[padded channels]` float64."""
        mean, square = self._average
        return Moments(
            self._origin.count,
            self._origin.mean + mean,
            (self._origin.var + square - mean.square()).clamp(min=0.0),
        )
