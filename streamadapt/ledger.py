"""What became of the updates: turns verdicts into events and remembers what is wrong."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from streamadapt.events import FramesRejected, Outcome, StepCompleted, UpdateRefused
from streamadapt.outbox import Outbox
from streamadapt.readout import Readouts, Stopwatch

_REJECTIONS_IN_A_ROW = 3


@dataclass(frozen=True)
class StepFacts:
    """What is known of a step when it ends: its streams' frames and rows, in the same order.

    `held` says which of the rows were not to be changed.
    """

    step: int
    frames: Mapping[Hashable, int]
    rows: tuple[int, ...]
    watch: Stopwatch
    held: tuple[bool, ...] | None = None


class Ledger:
    """Books of one processor.

    Attributes:
        trouble: what keeps the statistics from being updated, by kind, in words.
        last_update: monotonic time of the last commit of each row.
    """

    def __init__(self, outbox: Outbox, readouts: Readouts) -> None:
        self._outbox = outbox
        self._readouts = readouts
        self._rejected_in_a_row = 0
        self.trouble: dict[str, str] = {}
        self.last_update: dict[int, float] = {}

    def settle(
        self,
        facts: StepFacts,
        outcome: Outcome,
        verdict: Tensor | None,
        gated: Tensor | None = None,
    ) -> None:
        """Book a step: now on the CPU, when the device has got there on CUDA.

        Args:
            facts: what is known already.
            outcome: what became of it, if there is no verdict to tell.
            verdict: the bank's, `[rows]`.
            gated: `[rows]`, frames that the guard kept out, of which it tells itself.
        """
        if verdict is None:
            marker = torch.zeros(0, device=facts.watch.device)
            self._readouts.submit(marker, lambda _: self._complete(facts, outcome, ()))
            return
        now = time.monotonic()
        told = verdict[None] if gated is None else torch.stack([verdict, gated.to(verdict)])

        def receive(arrived: Tensor) -> None:
            verdicts, *rest = arrived.tolist()
            self._receive(facts, verdicts, rest[0] if rest else [0.0] * len(verdicts), now)

        self._readouts.submit(told, receive)

    def forget(self, row: int) -> None:
        """A row has a new owner."""
        self.last_update.pop(row, None)

    def age_seconds(self, row: int) -> float | None:
        """Seconds since a row was committed; None if it never was."""
        last = self.last_update.get(row)
        return None if last is None else time.monotonic() - last

    def _receive(
        self, facts: StepFacts, verdicts: list[float], kept_out: list[float], now: float
    ) -> None:
        updated = []
        held = facts.held or (False,) * len(facts.rows)
        for (stream, frames), row, value, gated, still in zip(
            facts.frames.items(), facts.rows, verdicts, kept_out, held, strict=True
        ):
            rejected = frames - int(abs(value)) - int(gated)
            if rejected > 0 and not still:
                self._outbox.post(
                    FramesRejected(
                        step=facts.step, stream=stream, frames=rejected, reason="nonfinite"
                    )
                )
            if value < 0:
                self._outbox.post(UpdateRefused(step=facts.step, stream=stream))
            if value > 0:
                self.last_update[row] = now
                updated.append(stream)
        quiet = bool(updated) or any(held)
        self._rejected_in_a_row = 0 if quiet else self._rejected_in_a_row + 1
        if self._rejected_in_a_row >= _REJECTIONS_IN_A_ROW:
            self.trouble["rejected"] = (
                f"no frame was usable in the last {self._rejected_in_a_row} batches"
            )
        else:
            self.trouble.pop("rejected", None)
        outcome: Outcome = "updated" if updated else "held" if all(held) else "rejected"
        self._complete(facts, outcome, tuple(updated))

    def _complete(self, facts: StepFacts, outcome: Outcome, updated: tuple[Hashable, ...]) -> None:
        inference, update = facts.watch.seconds()
        timing: Literal["wall", "cuda_event"] = facts.watch.timing
        self._outbox.post(
            StepCompleted(
                step=facts.step,
                frames=facts.frames,
                outcome=outcome,
                updated_streams=updated,
                inference_seconds=inference,
                update_seconds=update,
                timing=timing,
            )
        )
