"""Whether a stream that started anew is in another world, or only saw something else in its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streamadapt.bank import RowState
from streamadapt.engine import AdaptationEngine
from streamadapt.events import Phase
from streamadapt.moments import Moments, location_scale_distance
from streamadapt.profile import SourceProfile
from streamadapt.readout import Readouts

_DEPTH = 1 / 2  # part of the layers, from the first one on, that a world is known by
_OTHER = 2 / 3  # of the larger distance from the source, from which two are different
_FEW_FRAMES = 8  # of the source, whose distance from it two worlds exceed
_EVERY_FRAMES = 64.0  # that a world is followed, between two copies of the statistics
_LEAST_AGE_FRAMES = 32.0  # of a copy when a change is noticed: it is of the time before


@dataclass
class _Stream:
    copies: list[tuple[float, RowState]] = field(default_factory=list)
    seen: float = 0.0
    left: RowState | None = None  # the world that it started anew from; None: the source
    started_anew: bool = False


class Worlds:
    """Statistics of the worlds that streams are in and come from.

    An estimator that settles starts anew when frames no longer fit its statistics, and a crossing
    that fills with cars can be enough. When it has settled, its statistics are compared with those
    that it left, in the shallow half of the layers. Farther apart than two thirds of the distance
    that the farther one has from the source, they are of different worlds; and, where a profile
    tells, farther than eight frames of the source are from it, which a scene may do by itself.

    Args:
        engine: whose rows they are.
        readouts: brings distances to the host.
        on_other: called with step, stream and row, when a stream is in another world.
        profile: of the source.
        on: without, nothing is kept or compared.
    """

    def __init__(
        self,
        *,
        engine: AdaptationEngine,
        readouts: Readouts,
        on_other: Callable[[int, Hashable, int], None],
        profile: SourceProfile | None,
        on: bool,
    ) -> None:
        self._on = on
        self._least = 0.0 if profile is None else profile.innovation_of(_FEW_FRAMES, depth=_DEPTH)
        self._engine, self._readouts, self._on_other = engine, readouts, on_other
        self._streams: dict[int, _Stream] = {}

    def follow(self, row: int, phase: Phase | None, frames: float) -> None:
        """Frames of a row went by, in that phase."""
        if not self._on:
            return
        one = self._of(row)
        one.seen += frames
        if phase != "following":
            return
        if not one.copies or one.seen - one.copies[-1][0] >= _EVERY_FRAMES:
            one.copies = [*one.copies[-1:], (one.seen, self._engine.bank.capture([row]))]

    def former(self, row: int) -> RowState | None:
        """Statistics that a row followed a while ago; None where it has not."""
        one = self._of(row)
        if not one.copies:
            return None
        old = [state for when, state in one.copies if one.seen - when >= _LEAST_AGE_FRAMES]
        return old[-1] if old else one.copies[0][1]

    def phase_changed(
        self, step: int, stream: Hashable, row: int, before: Phase | None, now: Phase
    ) -> None:
        """The estimator of a row took up something else."""
        if not self._on:
            return
        one, former = self._of(row), self.former(row)
        one.copies = []
        if now == "settling":
            if before == "resting" or (before == "following" and former is not None):
                one.left, one.started_anew = former, True
        elif one.started_anew:
            left = self.source() if one.left is None else self.moments([one.left])
            one.left, one.started_anew = None, False
            self._compare(step, stream, row, left)

    def forget(self, rows: Iterable[int]) -> None:
        """Rows belong to other streams, or were put elsewhere."""
        for row in rows:
            self._streams.pop(row, None)

    def source_replaced(self) -> None:
        """All that is known was of another source."""
        self._streams.clear()
        self._least = 0.0

    def source(self) -> Moments:
        """The source's, `[1, channels]`."""
        mean, var = self._engine.bank.source.double()
        return Moments(torch.zeros_like(mean), mean[None], var[None])

    def moments(self, states: Sequence[RowState]) -> Moments:
        """Statistics of rows, `[states, channels]` float64, on the engine's device of today."""
        data = torch.cat([state.data[:, :2].to(self._engine.device) for state in states]).double()
        return Moments(torch.zeros_like(data[0, 0]), data[:, 0], data[:, 1])

    def apart(self, one: Moments, others: Moments) -> Tensor:
        """Distances of statistics, mean over the shallow half of the layers, `[rows]`."""
        layout = self._engine.layout
        distance = location_scale_distance(one, others, layout.eps)
        return layout.mean_over_leading(distance[..., layout.leading(_DEPTH)], _DEPTH)[..., 0]

    def _of(self, row: int) -> _Stream:
        return self._streams.setdefault(row, _Stream())

    def _compare(self, step: int, stream: Hashable, row: int, left: Moments) -> None:
        with torch.inference_mode(False), torch.no_grad():
            now, source = self.moments([self._engine.bank.capture([row])]), self.source()
            pairs = (now, left), (now, source), (left, source)
            distances = torch.cat([self.apart(*pair) for pair in pairs])

        def receive(values: Tensor) -> None:
            moved, *from_source = values.tolist()
            if moved > max(_OTHER * max(from_source), self._least):
                self._on_other(step, stream, row)

        self._readouts.submit(distances, receive)
