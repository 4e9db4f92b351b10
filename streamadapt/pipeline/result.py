"""What a pipeline gives for a batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils import _pytree as pytree

from streamadapt.events import Outcome, Phase
from streamadapt.frames import Frame
from streamadapt.parts import some_frames

Action = Literal[
    "adapting", "held", "shrunk", "rolled_back", "pinned", "shadow", "frozen", "killed"
]
"""What is done with a stream's statistics: they follow it; the guard has stepped in, see
`GuardState`; the processor is in shadow mode; updates are stopped; the kill switch is on."""


@dataclass(frozen=True)
class Reading:
    """How a camera's stream is.

    Attributes:
        drift: distance of what it shows from the source, mean over layers, looked at now and then;
            None before the first look.
        phase: of the estimator, if it has phases.
        action: what is done with its statistics.
    """

    drift: float | None
    phase: Phase | None
    action: Action


@dataclass(frozen=True)
class Latency:
    """Where the time of a batch went, seconds.

    Attributes:
        decode: of its frames, together.
        queue: from the arrival of its oldest frame to the beginning of its step.
        preprocess: of its frames, together.
        inference: the model.
        update: of the statistics.
    """

    decode: float
    queue: float
    preprocess: float
    inference: float
    update: float

    @property
    def added(self) -> float:
        """What is not decoding, preprocessing or the model."""
        return self.queue + self.update


@dataclass(frozen=True, eq=False)
class Result:
    """A batch's answers; iterate over it for `(frame, its part of the output)`.

    Attributes:
        output: what the model returned.
        frames: of the batch, in its order.
        readings: of each camera in it.
        outcome: what the batch did to the statistics; None where that is not known yet.
        latency: where its time went.
    """

    output: Any
    frames: tuple[Frame, ...]
    readings: Mapping[Hashable, Reading]
    outcome: Outcome | None
    latency: Latency

    def __iter__(self) -> Iterator[tuple[Frame, Any]]:
        listed = isinstance(self.output, list) and len(self.output) == len(self.frames)
        for index, frame in enumerate(self.frames):
            if listed:  # one entry a frame, as detectors answer
                yield frame, self.output[index]
            else:
                yield frame, _only(some_frames(self.output, [index]))

    def __len__(self) -> int:
        return len(self.frames)


def _only(part: Any) -> Any:
    """One frame's output, without the dimension of the batch."""
    return pytree.tree_map_only(Tensor, lambda one: one[0] if one.dim() else one, part)
