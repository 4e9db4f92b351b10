"""What a replay asks of a way to answer a stream."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from streamadapt.events import Event


@runtime_checkable
class Policy(Protocol):
    """Answers batches one after the other. It never sees a label.

    Called under `torch.no_grad()`; a policy that learns enables gradients itself.

    Attributes:
        name: what tables and charts call it.
        description: what it is, in words.
        oracle: wants each domain's frames before the domain starts, which no deployed model has.
    """

    name: str
    description: str
    oracle: bool

    def start(
        self, model: nn.Module, *, calibration: Sequence[Tensor] = (), cameras: Sequence[str] = ()
    ) -> None:
        """Take a model of one's own, in evaluation mode.

        Args:
            model: nobody else has it.
            calibration: batches of source frames, `[B, 3, H, W]`, without labels; empty where the
                scenario sets none aside.
            cameras: their names, where there are several.
        """

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        """Called on oracles only, with all batches of the domain; may be iterated repeatedly."""

    def reset(self) -> None:
        """Go back to the source, as if just started."""

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer, and adapt.

        Args:
            batch: normalised frames, `[B, 3, H, W]`.
            streams: the camera of each frame, where there are several.

        Returns:
            Class scores `[B, classes]`.
        """

    def predict(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer as things stand, and adapt nothing."""

    def distance(self) -> Mapping[str, float] | None:
        """Location-scale distance of the statistics from the source's, by BatchNorm layer.

        None where there is no such thing.
        """

    def events(self) -> Sequence[Event]:
        """What happened since the last call."""

    def finish(self) -> None:
        """Let the model go."""


class BasePolicy:
    """A model that answers; what most policies need besides.

    Args:
        name: what tables and charts call it.
        description: what it is, in words.
    """

    oracle = False

    def __init__(self, name: str, description: str) -> None:
        self.name = name
        self.description = description
        self._model: nn.Module | None = None
        self._source: nn.Module | None = None
        self._calibration: Sequence[Tensor] = ()

    @property
    def model(self) -> nn.Module:
        """The model, between `start` and `finish`."""
        assert self._model is not None, "start() comes first"
        return self._model

    def start(
        self, model: nn.Module, *, calibration: Sequence[Tensor] = (), cameras: Sequence[str] = ()
    ) -> None:
        """Keep the model, and a copy to come back to."""
        self._source = copy.deepcopy(model)
        self._model = model
        self._calibration = calibration
        self.prepare()

    def prepare(self) -> None:
        """Set up `self.model` and whatever is remembered of a stream; for `start` and `reset`."""

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        """Nothing to do."""

    def reset(self) -> None:
        """Start again from a copy of the source."""
        assert self._source is not None, "start() comes first"
        self._model = copy.deepcopy(self._source)
        self.prepare()

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """What the model says."""
        scores: Tensor = self.model(batch)
        return scores

    def predict(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """What the model says."""
        scores: Tensor = self.model(batch)
        return scores

    def distance(self) -> Mapping[str, float] | None:
        """Not measured."""
        return None

    def events(self) -> Sequence[Event]:
        """None."""
        return ()

    def finish(self) -> None:
        """Drop the models."""
        self._model = self._source = None
