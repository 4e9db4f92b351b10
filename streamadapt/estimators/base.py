"""The contract of an estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from torch import Tensor

from streamadapt.bank import State
from streamadapt.moments import Moments

Timing = Literal["lagged", "synchronous"]


def each_channel_alone(values: Tensor) -> Tensor:
    """`values` as they are: every channel counts as a layer of its own."""
    return values


@dataclass(frozen=True, eq=False)
class Observation:
    """What one step showed of each row.

    Attributes:
        moments: of the row's accepted frames, `[rows, channels]` float64; `count` is the number of
            positions, zero where a layer was not executed.
        frames: `[rows, 1]` float64, accepted frames.
        elapsed_seconds: `[rows, 1]` float64, camera time since the row's previous frames; a single
            zero for estimators that do not use it.
        per_layer_mean: puts in the place of each value, `[..., channels]`, the mean over its
            layer's channels; padding has no weight.
    """

    moments: Moments
    frames: Tensor
    elapsed_seconds: Tensor
    per_layer_mean: Callable[[Tensor], Tensor] = each_channel_alone


class Estimator(ABC):
    """An update rule: old state and new observation in, new state out.

    An estimator is a pure function over tensors. It sees all layers of all rows of a step at once,
    keeps no tensor of its own, and treats every channel alike, so that the same rule serves one
    layer (synchronous timing) and the whole bank (the commit); what the channels of a layer decide
    together, they decide by `observed.per_layer_mean`. Rows without an accepted frame and
    layers that were not executed are held back by the bank; a proposal that is not finite is
    refused there as well.

    Attributes:
        timings: when it may run. In lagged timing batch *t* is normalised with the statistics as
            of *t - 1*.
        compensated: ask for exactly taken moments, and for 48-bit means and variances in the bank.
        counted: it needs `state.moments.count`, the positions behind its estimate, and returns it.
        scalars: names and initial values of per-row float64 values it wants remembered.
        uses_time: whether `elapsed_seconds` matters to it.
    """

    timings: ClassVar[frozenset[Timing]] = frozenset({"lagged", "synchronous"})
    compensated: bool = False
    counted: bool = False
    scalars: Mapping[str, float] = MappingProxyType({})
    uses_time: bool = False

    @abstractmethod
    def update(self, state: State, observed: Observation) -> State:
        """The state after `observed`; must not modify its arguments."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({shown})"
