"""Settling passes: which streams are due, and the second forward over their frames."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from streamadapt.engine import AdaptationEngine, Committed, StepRows
from streamadapt.estimators.base import PHASES
from streamadapt.events import Phase, PhaseChanged
from streamadapt.outbox import Outbox
from streamadapt.readout import Readouts
from streamadapt.steplock import StepLock
from streamadapt.taps.step import Settling
from streamadapt.transfer import upload


class PhaseBook:
    """The phase of every row, as far as the host knows: on CUDA, a few steps late.

    Args:
        outbox: where changes are told.
        readouts: brings phases to the host.
    """

    def __init__(self, outbox: Outbox, readouts: Readouts) -> None:
        self._outbox = outbox
        self._readouts = readouts
        self._phases: dict[int, Phase] = {}

    def read(
        self, step: int, streams: Sequence[Hashable], rows: Sequence[int], phase: Tensor
    ) -> None:
        """Ask for the phases of rows, `[rows]`."""

        def receive(values: Tensor) -> None:
            for stream, row, value in zip(streams, rows, values.tolist(), strict=True):
                now, before = PHASES[int(value)], self._phases.get(row)
                self._phases[row] = now
                if now != before:
                    self._outbox.post(
                        PhaseChanged(step=step, stream=stream, before=before, phase=now)
                    )

        self._readouts.submit(phase, receive)

    def of(self, row: int) -> Phase | None:
        """The phase of a row; None while it is not known."""
        return self._phases.get(row)

    def due(self, rows: Sequence[int]) -> list[bool]:
        """Which of some rows need a settling pass; those that nothing is known of do."""
        return [self._phases.get(row, "settling") == "settling" for row in rows]

    def forget(self, rows: Iterable[int]) -> None:
        """Rows were put on another state."""
        for row in rows:
            self._phases.pop(row, None)


def settle(
    forward: Callable[[], Any],
    engine: AdaptationEngine,
    where: StepRows,
    *,
    entries: int,
    due: Sequence[bool],
    committed: Committed,
    step_lock: StepLock,
    state_lock: AbstractContextManager[Any],
) -> tuple[Any, Committed]:
    """Run the frames of a step once more, and commit what that shows of the rows that are due.

    Leaves no trace in the model or in random states.

    Args:
        forward: runs the model on the frames.
        engine: has committed the step.
        where: the step's rows.
        entries: batch size.
        due: which of the rows it is for.
        committed: the step's; frames and rows that it did not accept are left out here as well.
        step_lock: held for the step.
        state_lock: held while the bank changes.

    Returns:
        The model's output under the statistics of the pass, and the commit.
    """
    device = engine.device
    accepted = (committed.verdict > 0).unsqueeze(1)
    if not all(due):
        accepted = accepted & upload(torch.tensor(due).unsqueeze(1), device)
    settling = Settling(committed.weights * accepted, committed.trust)
    with (
        step_lock.forward(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.no_grad(),
        engine.armed(where, entries=entries, observe=True, settling=settling) as step,
    ):
        output = forward()
    with state_lock:
        return output, engine.commit(step, where)
