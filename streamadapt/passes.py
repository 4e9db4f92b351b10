"""Forwards of a step beside the one that answers: comparisons, settling, the shadow's candidate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from streamadapt.capturing import CapturedStep
from streamadapt.committing import Committed
from streamadapt.errors import one_line
from streamadapt.events import (
    SettlingFailed,
    SettlingPassed,
    SettlingRefused,
    ShadowCompared,
    ShadowFailed,
    UpdateRefused,
)
from streamadapt.guarding import Comparing
from streamadapt.runtime import Runtime
from streamadapt.settling import settle
from streamadapt.shadow import compare_outputs
from streamadapt.taps import Step
from streamadapt.weighing import StepRows


@dataclass(frozen=True, eq=False)
class Call:
    """The model's arguments, as they came."""

    frames: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, runtime: Runtime) -> Any:
        """Run the model."""
        return runtime.model(self.frames, *self.args, **self.kwargs)


class SecondPasses:
    """Those of one runtime. They leave no trace in the model or in random states.

    Args:
        runtime: what they work on.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def compare(
        self, call: Call, where: StepRows, streams: Sequence[Hashable], output: Any
    ) -> None:
        """Let the guard look at the answers, and run the model again on some of the frames."""
        runtime = self._runtime
        if runtime.guard.guard is None:
            return
        device = runtime.engine.device

        def forward(frames: Any, part: StepRows) -> Any:
            with (
                runtime.step_lock.forward(),
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
                torch.no_grad(),
                runtime.engine.armed(part, entries=part.batch, observe=False, source=True),
            ):
                return replace(call, frames=frames)(runtime)

        others = pytree.tree_leaves((call.args, call.kwargs))
        divisible = isinstance(call.frames, Tensor) and not any(
            isinstance(one, Tensor) for one in others
        )
        busy = runtime.engine.has_phases and any(self._due(where))
        now = Comparing(
            runtime.steps, streams, where, call.frames, output, forward, divisible, busy
        )
        runtime.beside("guard", lambda: runtime.guard.watch(now))

    def candidate(
        self, call: Call, where: StepRows, entries: int | None, source_output: Any
    ) -> Step | None:
        """Shadow mode's second forward, on adapted statistics; leaves no trace in the model."""
        runtime, number = self._runtime, self._runtime.steps
        device = runtime.engine.device
        try:
            with (
                runtime.step_lock.forward(),
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
                torch.no_grad(),
                runtime.engine.armed(where, entries=entries, observe=True) as step,
            ):
                output = call(runtime)
            compared = compare_outputs(source_output, output)
        except Exception as error:
            runtime.ledger.trouble["shadow"] = f"the candidate pass failed: {one_line(error)}"
            runtime.outbox.post(ShadowFailed(step=number, error=one_line(error)))
            return None
        runtime.ledger.trouble.pop("shadow", None)

        def receive(values: Tensor) -> None:
            agreement, relative = values.tolist()
            runtime.outbox.post(
                ShadowCompared(
                    step=number,
                    frames=step.entries or 0,
                    agreement=None if agreement != agreement else agreement,
                    relative_difference=relative,
                )
            )

        if compared is not None:
            runtime.readouts.submit(compared, receive)
        streams = tuple(runtime.streams.name(row) for row in where.rows)
        runtime.guard.compare(number, streams, where, output, source_output)
        return step

    def settle(
        self,
        call: Call,
        where: StepRows,
        step: Step | CapturedStep | None,
        committed: Committed,
        frames: Mapping[Hashable, int],
    ) -> tuple[Any, Committed | None]:
        """A settling pass over the step's frames, where a row is due; its output and commit."""
        runtime, number = self._runtime, self._runtime.steps
        book, trouble = runtime.phases, runtime.ledger.trouble
        streams, counts = tuple(frames), tuple(frames.values())
        assert committed.phase is not None and step is not None and step.entries is not None
        with runtime.state_lock:
            book.read(number, streams, where.rows, committed.phase)

            def follow() -> None:
                for row, count in zip(where.rows, counts, strict=True):
                    runtime.worlds.follow(row, book.of(row), count)

            runtime.beside("domain memory", follow)
        due = self._due(where)
        if not any(due):
            return None, None
        try:
            output, settled = settle(
                lambda: call(runtime),
                runtime.engine,
                where,
                entries=step.entries,
                due=due,
                committed=committed,
                check=book.check,
                step_lock=runtime.step_lock,
                state_lock=runtime.state_lock,
            )
        except Exception as error:
            trouble["settling"] = f"the settling pass failed: {one_line(error)}"
            runtime.outbox.post(SettlingFailed(step=number, error=one_line(error)))
            return None, None
        trouble.pop("settling", None)
        runtime.outbox.post(
            SettlingPassed(
                step=number,
                streams=tuple(s for s, one in zip(streams, due, strict=True) if one),
            )
        )

        def receive(verdict: Tensor) -> None:
            for stream, frames in zip(streams, verdict.tolist(), strict=True):
                if frames < 0:
                    runtime.outbox.post(UpdateRefused(step=number, stream=stream))

        def judge(healthy: Tensor) -> None:
            for stream, sound in zip(streams, healthy.flatten().tolist(), strict=True):
                if not sound:
                    runtime.outbox.post(SettlingRefused(step=number, stream=stream))

        assert settled.phase is not None
        with runtime.state_lock:
            runtime.readouts.submit(settled.verdict, receive)
            if settled.healthy is not None:
                runtime.readouts.submit(settled.healthy, judge)
            runtime.beside(
                "domain memory",
                lambda: runtime.domains.compare(number, streams, where.rows, due),
            )
            book.read(number, streams, where.rows, settled.phase)
        return output, settled

    def _due(self, where: StepRows) -> list[bool]:
        """Which rows a settling pass is due for."""
        due = self._runtime.phases.due(where.rows)
        if where.held is None:
            return due
        return [one and not held for one, held in zip(due, where.held, strict=True)]
