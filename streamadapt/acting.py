"""What ladders decide, carried out before the next step; answers, kept until their labels come."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from streamadapt.engine import AdaptationEngine
from streamadapt.errors import one_line
from streamadapt.events import GuardActed, GuardFailed, RolledBack
from streamadapt.guard.answers import Answers
from streamadapt.guard.known import Health
from streamadapt.guard.labels import AnswerBook, Answered, Labelled
from streamadapt.guard.ladder import Action, Comparison, Ladder
from streamadapt.guard.ring import StateRing
from streamadapt.guard.spacing import Spacing
from streamadapt.outbox import Outbox
from streamadapt.readout import Readouts

_WINDOW_FRAMES = 256.0  # that a comparison looks back


@dataclass
class Watched:
    """What the guard keeps of one row."""

    ladder: Ladder
    ring: StateRing
    seen: float = 0.0
    steps: int = 0
    spacing: Spacing = field(default_factory=Spacing)
    health: Health | None = None
    gain: float = math.nan
    agreement: float = math.nan
    version: int = 0
    labelled: Labelled = field(default_factory=Labelled)


class Acts:
    """Acts on the statistics of rows, and tells of it.

    Args:
        engine: whose rows they are.
        outbox: where it is told.
    """

    def __init__(self, *, engine: AdaptationEngine, outbox: Outbox) -> None:
        self._engine, self._outbox = engine, outbox
        self._due: list[tuple[int, Hashable, Action, Comparison]] = []

    def judged(
        self, row: int, stream: Hashable, one: Watched, now: Comparison, frames: float
    ) -> None:
        """A comparison arrived, of the latest `frames`; what it leads to is done by `act`."""
        action = one.ladder.compared(now, frames)
        if action is not None:
            self._due.append((row, stream, action, now))

    def act(self, step: int, streams: Mapping[int, Watched]) -> None:
        """Do what was decided since the last time, for the rows that are still watched."""
        due, self._due = self._due, []
        for row, stream, action, now in due:
            one = streams.get(row)
            if one is None:
                continue
            try:
                self._act(step, row, stream, one, action, now)
            except Exception as error:
                self._outbox.post(GuardFailed(step=step, error=one_line(error)))

    def tell(
        self, step: int, stream: Hashable, one: Watched, action: Action, now: Comparison | None
    ) -> None:
        """Say that it was done, because of that comparison."""
        self._outbox.post(
            GuardActed(
                step=step,
                stream=stream,
                action=action,
                state=one.ladder.state,
                gain=None if now is None or math.isnan(now.gain) else now.gain,
                frames=0 if now is None else round(now.frames),
            )
        )

    def _act(
        self, step: int, row: int, stream: Hashable, one: Watched, action: Action, now: Comparison
    ) -> None:
        engine, to = self._engine, None
        if action == "shrink":
            engine.shrink([row], 0.5)
        elif action in ("rollback", "pin"):
            former = None
            if action == "rollback":
                former = one.ring.older_than(one.seen - now.frames - _WINDOW_FRAMES)
            if former is None or engine.has_phases:
                engine.reset([row])
                to = "source"
                if action == "rollback" and not engine.has_phases:
                    one.ladder.pin()
                    action = "pin"
            else:
                to = f"{one.seen - one.ring.frames[-1]:.0f} frames ago"
                engine.restore([row], former)
        self.tell(step, stream, one, action, now)
        if to is not None:
            self._outbox.post(RolledBack(step=step, to=to, streams=(stream,), reason="harm"))


def keep_answers(
    book: AnswerBook,
    readouts: Readouts,
    identifiers: Sequence[Hashable | None],
    of: Sequence[tuple[Hashable, int, int]],
    adapted: Any,
    source: Any,
) -> None:
    """Keep what was answered to frames, as soon as it has arrived; images of answers are not.

    Args:
        book: where it is kept.
        readouts: brings it.
        identifiers: of the frames; None: there will be no label.
        of: stream, row and version of each frame.
        adapted: the model's output for these frames.
        source: the same on the source's statistics.
    """
    both = [Answers.of(one, len(of)) for one in (adapted, source)]
    if both[0] is None or both[1] is None or both[0].classes.shape[1] != 1:
        return
    names = list(identifiers)

    def receive(values: Tensor) -> None:
        for identifier, (stream, row, version), (ours, theirs) in zip(
            names, of, values.tolist(), strict=True
        ):
            if identifier is not None:
                book.keep(identifier, Answered(row, stream, version, ours, theirs))

    readouts.submit(torch.cat([both[0].classes, both[1].classes], dim=1), receive)
