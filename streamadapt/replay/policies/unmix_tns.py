"""UnMix-TNS: every frame is normalised by a mixture of components and of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from streamadapt.arguments import check_at_least_one
from streamadapt.errors import ConfigurationError
from streamadapt.moments import Moments
from streamadapt.ops.remap import remap_coefficients
from streamadapt.replay.policies.engine import (
    ONE_ROW,
    EnginePolicy,
    check_positive,
    check_share,
)
from streamadapt.taps import Step

Proposals = dict[int, tuple[Tensor, Tensor]]
"""New means and variances of a layer's components, `[components, channels]`, by its index."""


class UnMixTNSPolicy(EnginePolicy):
    """Keeps `K` components of each layer's statistics, each fed by the frames that resemble it.

    With `m_b`, `v_b` the moments of frame `b` over its positions and `mu_k`, `s_k` mean and
    variance of component `k`, all vectors over channels::

        p_bk = softmax_k(cos(m_b, mu_k) / temperature)
        m_bk = (1 - p_bk) mu_k + p_bk m_b,   v_bk = (1 - p_bk) s_k + p_bk v_b
        frame b is normalised by   mean_k m_bk   and   mean_k v_bk + var_k m_bk
        mu_k <- mu_k + w mean_b p_bk (m_b - mu_k),   and alike s_k

    for a batch of `B` frames `w = 1 - (1 - momentum)^(B / full_batch_frames)`. Frames are
    normalised before the components move. These start around the source, at
    `mu_k = mu + sqrt(spread K / (K - 1)) sigma z_k` with standard normal `z_k` and
    `s_k = (1 - spread) sigma^2`: their even mixture is the source in expectation, so that
    `distance` is small at the start, not zero.

    Departures: `w` follows the size of each batch, where the published one is set once for the
    nominal size. A layer whose input has one position a frame keeps the source's statistics, as
    published for `BatchNorm1d`. Frames whose moments are not finite teach nothing.

    Args:
        name: what tables and charts call it.
        components: `K`; the authors take 16, and 128 where domains are mixed.
        momentum: weight of a full batch.
        full_batch_frames: size of a full batch; the authors take 64, and 16 on ImageNet.
        temperature: of the assignment.
        spread: share of the source's variance that lies between the components, in [0, 1).
        seed: draws the components.

    Reference:
        Tomar et al., "Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal
        Correlation", ICLR 2024, arXiv:2401.08328.
    """

    def __init__(
        self,
        name: str = "unmix_tns",
        *,
        components: int = 16,
        momentum: float = 0.1,
        full_batch_frames: int = 64,
        temperature: float = 0.07,
        spread: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_at_least_one(components=components, full_batch_frames=full_batch_frames)
        check_share(momentum=momentum)
        check_positive(temperature=temperature)
        if not 0.0 <= spread < 1.0:
            raise ConfigurationError(f"`spread` must be in [0, 1), got {spread}.")
        super().__init__(name, f"UnMix-TNS, {components} components, momentum {momentum:g}")
        self.components, self.momentum = components, momentum
        self.full_batch_frames = full_batch_frames
        self.temperature, self.spread, self.seed = temperature, spread, seed

    def prepare(self) -> None:
        """Draw the components around the source."""
        self.wrap(bound=False)
        self._origin = source = self.source()
        count = self.components
        spread = self.spread if count > 1 else 0.0
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(count, len(source.mean), dtype=torch.float64, generator=generator).to(
            source.mean.device
        )
        scale = math.sqrt(spread * count / max(count - 1, 1))
        self._mean = source.mean + scale * source.std * noise
        self._var = ((1.0 - spread) * source.var).repeat(count, 1)

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer, and move the components."""
        scores, proposals = self._answer(batch)
        for index, (mean, var) in proposals.items():
            span = self.engine.layout.layers[index].span
            self._mean[:, span], self._var[:, span] = mean, var
        return scores

    def predict(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer with the components as they are."""
        return self._answer(batch)[0]

    def distance(self) -> Mapping[str, float]:
        """Distance from the source of the components' even mixture."""
        var, mean = torch.var_mean(self._mean, dim=0, correction=0, keepdim=True)
        mixture = Moments(torch.zeros_like(mean), mean, var + self._var.mean(dim=0))
        return self.distance_of(mixture)

    def _answer(self, batch: Tensor) -> tuple[Tensor, Proposals]:
        proposals: Proposals = {}
        with self.engine.armed(ONE_ROW, entries=len(batch), observe=True) as step:
            step.coefficients = partial(self._mix, step, proposals)
            scores: Tensor = self.model(batch)
        return scores, proposals

    def _mix(self, step: Step, proposals: Proposals, index: int) -> tuple[Tensor, Tensor]:
        """What moves a layer's input, `[frames, channels]`; leaves a proposal."""
        span = self.engine.layout.layers[index].span
        source = self._origin
        own = Moments(source.count[span], source.mean[span], source.var[span])
        observed = step.frame_moments(index)
        if observed is None or step.positions[index] <= 1:
            same = torch.ones(1, len(own.mean), device=own.mean.device)
            return same, torch.zeros_like(same)
        count, mu, s = self.components, self._mean[:, span], self._var[:, span]
        m, v = observed.mean, observed.var  # [B, C]
        sound = torch.isfinite(m + v).all(dim=1, keepdim=True)
        m, v = torch.where(sound, m, 0.0), torch.where(sound, v, 0.0)
        p = (F.normalize(m) @ F.normalize(mu).T / self.temperature).softmax(dim=1)  # [B, K]

        # All sums over components as matrix products: [B, K, C] is never made. Means relative to
        # the source's, so that the squares do not cancel.
        rest, near, far = 1.0 - p, m - own.mean, mu - own.mean
        mean = (rest @ far + near) / count  # each row of p sums to 1
        within = (rest @ s + v) / count
        square = rest.square() @ far.square() + near.square() * p.square().sum(1, keepdim=True)
        square = (square + 2.0 * near * ((rest * p) @ far)) / count
        var = (within + square - mean.square()).clamp(min=0.0)

        weight = 1.0 - (1.0 - self.momentum) ** (len(m) / self.full_batch_frames)
        p = p * sound * (weight / sound.sum().clamp(min=1))
        total = p.sum(dim=0).unsqueeze(1)
        proposals[index] = (mu + p.T @ m - total * mu, s + p.T @ v - total * s)
        wanted = Moments(own.count, own.mean + mean, var)
        return remap_coefficients(wanted, own, self.engine.layout.eps[span])
