"""Dynamic unsupervised adaptation."""

from __future__ import annotations

from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators.base import Estimator, Observation
from streamadapt.moments import Moments


class DUA(Estimator):
    """An EMA whose weight starts high and decays to a floor, so that few images suffice.

    Step `k` has weight `m_k + floor` with `m_k = decay m_{k-1}`, `m_0 = momentum`. Mean and
    variance are blended without the between-term and with the unbiased batch variance, because the
    method runs PyTorch's own BatchNorm update. The paper adapts on augmented copies of one image
    and reports the best of 80 steps; here the frames are what the camera sends.

    Args:
        momentum: `m_0`.
        decay: in (0, 1].
        floor: the weight that remains.

    Reference:
        Mirza et al., "The Norm Must Go On: Dynamic Unsupervised Domain Adaptation by
        Normalization", CVPR 2022, arXiv:2112.00463.
    """

    def __init__(self, momentum: float = 0.1, *, decay: float = 0.94, floor: float = 0.005) -> None:
        if not 0.0 < decay <= 1.0:
            raise ConfigurationError(f"`decay` must be in (0, 1], got {decay}.")
        if momentum < 0.0 or floor < 0.0 or not 0.0 < momentum + floor <= 1.0:
            raise ConfigurationError(
                "`momentum` and `floor` must be at least 0 with a sum in (0, 1], got "
                f"{momentum} and {floor}."
            )
        self.momentum, self.decay, self.floor = momentum, decay, floor
        self.scalars = {"dua_momentum": float(momentum)}

    def update(self, state: State, observed: Observation) -> State:
        """Decay the weight, then blend."""
        current = state.scalars["dua_momentum"] * self.decay
        weight = current + self.floor
        old, batch = state.moments, observed.moments
        moments = Moments(
            old.count + batch.count,
            old.mean + weight * (batch.mean - old.mean),
            old.var + weight * (batch.unbiased_var - old.var),
        )
        return state.advance(moments, dua_momentum=current)

    def __repr__(self) -> str:
        return f"DUA(momentum={self.momentum}, decay={self.decay}, floor={self.floor})"
