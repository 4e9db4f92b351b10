"""The contract of an estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from streamadapt.bank import State
from streamadapt.estimators.correction import FrameCorrection
from streamadapt.events import Phase
from streamadapt.moments import Moments
from streamadapt.profile import SourceProfile

Timing = Literal["lagged", "synchronous"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Layers(Protocol):
    """How the channels of an observation belong together; `BankLayout` is one of a whole model."""

    @property
    def eps(self) -> Tensor:
        """What normalisation adds to each variance, float64, broadcasts to `[rows, channels]`."""

    @property
    def depth(self) -> Tensor:
        """Place of each channel's layer, from 0 (first) to 1 (last); broadcasts likewise."""

    def mean_over_layer(self, per_channel: Tensor) -> Tensor:
        """The mean over its layer in the place of each value, `[..., channels]`."""

    def mean_over_model(self, per_channel: Tensor) -> Tensor:
        """The mean over layers of their means, `[..., 1]`."""

    def leading(self, depth: float) -> slice:
        """Channels of the layers up to a depth."""

    def mean_over_leading(self, per_channel: Tensor, depth: float) -> Tensor:
        """The mean over these layers of their means, `[..., 1]`, from values of these channels."""


class OneLayer:
    """The channels of one layer.

    Args:
        eps: of its normalisation.
        depth: its place in the model, from 0 to 1.
    """

    def __init__(self, eps: Tensor, depth: Tensor) -> None:
        self.eps, self.depth = eps, depth

    def mean_over_layer(self, per_channel: Tensor) -> Tensor:
        """The mean over the last dimension in the place of each value."""
        return self.mean_over_model(per_channel).expand_as(per_channel)

    def mean_over_model(self, per_channel: Tensor) -> Tensor:
        """The mean over the last dimension."""
        return per_channel.mean(dim=-1, keepdim=True)

    def leading(self, depth: float) -> slice:
        """All channels."""
        return slice(None)

    def mean_over_leading(self, per_channel: Tensor, depth: float) -> Tensor:
        """The mean over the last dimension."""
        return self.mean_over_model(per_channel)


class EachChannelAlone(OneLayer):
    """Every channel is a layer of its own, without eps, at the first place."""

    def __init__(self) -> None:
        nothing = torch.zeros((), dtype=torch.float64)
        super().__init__(nothing, nothing)

    def mean_over_layer(self, per_channel: Tensor) -> Tensor:
        """The values themselves."""
        return per_channel


_NO_LAYERS = EachChannelAlone()


@dataclass(frozen=True, eq=False)
class Observation:
    """What one step showed of each row.

    Attributes:
        moments: of the row's accepted frames, `[rows, channels]` float64; `count` is the number of
            positions, zero where a layer was not executed.
        frames: `[rows, 1]` float64, accepted frames.
        elapsed_seconds: `[rows, 1]` float64, camera time since the row's previous frames; a single
            zero for estimators that do not use it.
        layers: how the channels belong together.
        settling: whether they are from a settling pass, in which each layer was measured under
            what the pass had made of the layers before it; see `Estimator.phase`.
        healthy: `[rows, 1]`, 0 for rows whose answers under what settling found say less than
            under the source's statistics, 1 for the others; None where nobody asked.
    """

    moments: Moments
    frames: Tensor
    elapsed_seconds: Tensor
    layers: Layers = _NO_LAYERS
    settling: bool = False
    healthy: Tensor | None = None


class Estimator(ABC):
    """An update rule: old state and new observation in, new state out.

    An estimator is a pure function over tensors, in two parts. `update` treats every channel alike,
    so that the same rule serves one layer (synchronous timing) and the whole bank (the commit);
    what the channels of a layer decide together, they decide by `observed.layers`. `decide` then
    sees all layers at once, in the commit only. Both see all rows of a step at once and keep no
    tensor. Rows without an accepted frame and layers that were not executed are held back by the
    bank; a proposal that is not finite is refused there as well.

    Attributes:
        timings: when it may run. In lagged timing batch *t* is normalised with the statistics as
            of *t - 1*.
        compensated: ask for exactly taken moments, and for 48-bit means and variances in the bank.
        counted: it needs `state.moments.count`, the positions behind its estimate, and returns it.
        aside: it wants `state.aside`, a second pair of mean and variance that no layer reads.
        scalars: names and initial values of per-row float64 values it wants remembered.
        uses_time: whether `elapsed_seconds` matters to it.
        robust: frames that are unlike the others of their batch lose weight.
        correction: how single frames that are unlike their row are normalised; None: like it.
    """

    timings: ClassVar[frozenset[Timing]] = frozenset({"lagged", "synchronous"})
    compensated: bool = False
    counted: bool = False
    aside: bool = False
    scalars: Mapping[str, float] = MappingProxyType({})
    uses_time: bool = False
    robust: bool = False
    correction: FrameCorrection | None = None

    @abstractmethod
    def update(self, state: State, observed: Observation) -> State:
        """The state after `observed`; must not modify its arguments."""

    def decide(self, old: State, new: State, observed: Observation) -> State:
        """What becomes of `new`, which `update` made of `old`; sees all layers at once."""
        return new

    def step(self, state: State, observed: Observation) -> State:
        """Both parts: what a commit writes."""
        return self.decide(state, self.update(state, observed), observed)

    def may_move(
        self, scalars: Mapping[str, Tensor], frames: Tensor, elapsed_seconds: Tensor
    ) -> Tensor | None:
        """Which rows' moments `update` may change in a step, `[rows, 1]` bool; None: all rows'.

        In synchronous timing layers of other rows need not wait for what the estimator says.

        Args:
            scalars: of the rows, as remembered.
            frames: `[rows, 1]`, at most so many will be accepted.
            elapsed_seconds: `[rows, 1]`.
        """
        return None

    def calibrated(self, profile: SourceProfile) -> Estimator:
        """The estimator for a model with this profile; the same where that changes nothing."""
        return self

    def phase(self, scalars: Mapping[str, Tensor]) -> Tensor | None:
        """Place of each row's phase in `PHASES`, `[rows, 1]`; None: it has no phases.

        Rows that are settling ask for settling passes. Such a pass is a second forward over the
        frames of a step. Layer after layer it is normalised with what `update` makes of it there,
        so that no layer is measured under another world's statistics in the layers before it.
        """
        return None

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({shown})"
