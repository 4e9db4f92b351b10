"""Settling passes: which streams are due, the second forward, and what its answers are worth."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from streamadapt.committing import Committed
from streamadapt.engine import AdaptationEngine
from streamadapt.estimators.base import PHASES
from streamadapt.events import Phase, PhaseChanged
from streamadapt.outbox import Outbox
from streamadapt.readout import Readouts
from streamadapt.scores import class_scores
from streamadapt.steplock import StepLock
from streamadapt.taps.step import Settling
from streamadapt.transfer import upload
from streamadapt.weighing import StepRows


class PhaseBook:
    """The phase of every row, as far as the host knows: on CUDA, a few steps late.

    Args:
        outbox: where changes are told.
        readouts: brings phases to the host.
        judges: compare the answers of rows that are settling with the source's.
        on_change: called with step, stream, row, the phase before and the phase now.

    Attributes:
        check: of the answers of rows that are settling.
    """

    def __init__(
        self,
        outbox: Outbox,
        readouts: Readouts,
        *,
        judges: bool,
        on_change: Callable[[int, Hashable, int, Phase | None, Phase], None],
    ) -> None:
        self._outbox = outbox
        self._readouts = readouts
        self._on_change = on_change
        self._phases: dict[int, Phase] = {}
        self.check = AnswersCheck(on=judges)

    def read(
        self, step: int, streams: Sequence[Hashable], rows: Sequence[int], phase: Tensor
    ) -> None:
        """Ask for the phases of rows, `[rows]`."""

        def receive(values: Tensor) -> None:
            for stream, row, value in zip(streams, rows, values.tolist(), strict=True):
                now, before = PHASES[int(value)], self._phases.get(row)
                self._phases[row] = now
                if now != "settling":
                    self.check.forget([row])
                if now != before:
                    self._outbox.post(
                        PhaseChanged(step=step, stream=stream, before=before, phase=now)
                    )
                    self._on_change(step, stream, row, before, now)

        self._readouts.submit(phase, receive)

    def of(self, row: int) -> Phase | None:
        """The phase of a row; None while it is not known."""
        return self._phases.get(row)

    def due(self, rows: Sequence[int]) -> list[bool]:
        """Which of some rows need a settling pass; those that nothing is known of do."""
        return [self._phases.get(row, "settling") == "settling" for row in rows]

    def forget(self, rows: Iterable[int]) -> None:
        """Rows were put on another state."""
        rows = list(rows)
        for row in rows:
            self._phases.pop(row, None)
        self.check.forget(rows)


class AnswersCheck:
    """Whether what settling finds makes the model say less than the source does.

    Compares the answers to the first 16 frames or more of a settling under the source's statistics
    and under the pass's, by the mutual information of frame and answer,
    `I = H(mean of p) - mean of H(p)`, `p` the softmax of the scores: statistics that do not fit
    make a model give one answer to everything, or none with confidence. Right ones raised it or
    left it nearly as it was in every world that was tried; below seven tenths of the source's they
    are refused.

    Args:
        on: without, nothing is asked.
    """

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self._sums: dict[int, tuple[Tensor, int]] = {}
        self._judged: set[int] = set()

    def wants(self, rows: Sequence[int], due: Sequence[bool]) -> bool:
        """Whether the source's answers are needed, for any of the rows that are due."""
        pairs = zip(rows, due, strict=True)
        return self._on and any(is_due and row not in self._judged for row, is_due in pairs)

    def forget(self, rows: Iterable[int]) -> None:
        """A settling ended, or the rows were put on another state."""
        for row in rows:
            self._sums.pop(row, None)
            self._judged.discard(row)

    def judge(
        self,
        rows: Sequence[int],
        due: Sequence[bool],
        frames: Sequence[int],
        weights: Tensor,
        source_output: Any,
        output: Any,
    ) -> Tensor | None:
        """Take a pass's answers in.

        Args:
            rows: of the step.
            due: which of them the pass was for.
            frames: of each row.
            weights: `[rows, entries]` float64, the frames that counted.
            source_output: of the model on the source's statistics.
            output: of the pass.

        Returns:
            `[rows, 1]` float64, 0 for rows whose answers say less, 1 for the others and for those
            that have not shown 16 frames yet; None where the output is no class scores.
        """
        pair = [_stated(one, weights.shape[1]) for one in (source_output, output)]
        pending = [row for row, is_due in zip(rows, due, strict=True) if is_due]
        if pair[0] is None or pair[1] is None:
            self._judged.update(pending)
            return None
        with torch.inference_mode(False), torch.no_grad():
            sums = weights @ torch.cat([pair[0], pair[1]], dim=1)
            verdicts = torch.ones(len(rows), 1, dtype=torch.float64, device=weights.device)
            for index, row in enumerate(rows):
                if row not in pending or row in self._judged:
                    continue
                before, shown = self._sums.get(row, (torch.zeros_like(sums[index]), 0))
                total, shown = before + sums[index], shown + frames[index]
                self._sums[row] = total, shown
                if shown >= _ENOUGH_FRAMES:
                    self._judged.add(row)
                    self._sums.pop(row)
                    source, own = (_information(one) for one in total.chunk(2))
                    less = own < _LEAST_SHARE * source - _SLACK
                    verdicts[index, 0] = torch.where(less, 0.0, 1.0)
        return verdicts


_ENOUGH_FRAMES = 16
_LEAST_SHARE, _SLACK = 0.7, 0.05  # of the information that the source's answers have; nats


def _stated(output: Any, entries: int) -> Tensor | None:
    """`1`, `p` and `H(p)` of every frame, `[frames, classes + 2]`; None for other outputs."""
    scores = class_scores(output)
    if scores is None or scores.dim() != 2 or scores.shape[0] != entries or scores.shape[1] < 2:
        return None
    with torch.inference_mode(False), torch.no_grad():
        p = scores.detach().double().softmax(dim=1)
        ones = torch.ones_like(p[:, :1])
        stated = torch.cat([ones, p, torch.special.entr(p).sum(dim=1, keepdim=True)], dim=1)
        return torch.where(torch.isfinite(stated), stated, 0.0)


def _information(sums: Tensor) -> Tensor:
    """Mutual information of frame and answer, in nats."""
    mean = sums / sums[0].clamp(min=1.0)
    entropy: Tensor = torch.special.entr(mean[1:-1]).sum()
    return entropy - mean[-1]


def _frames_by_row(where: StepRows, entries: int) -> list[int]:
    real = entries if where.valid is None else where.valid
    if where.entries is None:
        return [real]
    counts = [0] * len(where.rows)
    for index in where.entries[:real]:
        counts[index] += 1
    return counts


def settle(
    forward: Callable[[], Any],
    engine: AdaptationEngine,
    where: StepRows,
    *,
    entries: int,
    due: Sequence[bool],
    committed: Committed,
    check: AnswersCheck,
    step_lock: StepLock,
    state_lock: AbstractContextManager[Any],
) -> tuple[Any, Committed]:
    """Run the frames of a step once more, and commit what that shows of the rows that are due.

    The first frames go through a third time, on the source's statistics, for the `check`. Leaves no
    trace in the model or in random states.

    Args:
        forward: runs the model on the frames.
        engine: has committed the step.
        where: the step's rows.
        entries: batch size.
        due: which of the rows it is for.
        committed: the step's; frames and rows that it did not accept are left out here as well.
        check: of the answers.
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
    source_output = healthy = None
    wants = check.wants(where.rows, due)
    with (
        step_lock.forward(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.no_grad(),
    ):
        if wants:
            with engine.armed(where, entries=entries, observe=False, source=True):
                source_output = forward()
        with engine.armed(where, entries=entries, observe=True, settling=settling) as step:
            output = forward()
    if wants and settling.weights is not None:
        frames = _frames_by_row(where, entries)
        healthy = check.judge(where.rows, due, frames, settling.weights, source_output, output)
    with state_lock:
        return output, engine.commit(step, where, healthy=healthy)
