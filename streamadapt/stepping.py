"""One step: forward, commit, books. The output is the caller's whatever becomes of the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from streamadapt.batch import (
    batch_size,
    camera_time,
    frame_ids,
    frames_by_stream,
    padded,
    real_frames,
    rejections,
    stream_ids,
)
from streamadapt.capturing import Capture, CapturedStep
from streamadapt.committing import Committed
from streamadapt.errors import one_line
from streamadapt.events import (
    CaptureMissed,
    ForwardFailed,
    FramesRejected,
    GuardFailed,
    LayersUnobserved,
    Outcome,
    Rejection,
    UpdateFailed,
)
from streamadapt.journal import RecordedStep
from streamadapt.ledger import StepFacts
from streamadapt.passes import Call, SecondPasses
from streamadapt.readout import Stopwatch
from streamadapt.runtime import Runtime
from streamadapt.streams import DEFAULT_STREAM
from streamadapt.taps import Step
from streamadapt.weighing import StepRows, without

log = logging.getLogger("streamadapt")


class Stepper:
    """Runs the steps of one runtime.

    Args:
        runtime: what it works on.
        shadow_every: batches from one candidate pass to the next.
        clock: seconds; the camera time of frames without a time stamp.
    """

    def __init__(self, runtime: Runtime, *, shadow_every: int, clock: Callable[[], float]) -> None:
        self._runtime, self._passes = runtime, SecondPasses(runtime)
        self._shadow_every = shadow_every
        self._clock = clock
        self._unobserved: tuple[str, ...] = ()

    def run(
        self,
        call: Call,
        *,
        streams: Hashable | Sequence[Hashable] | None,
        pts_seconds: float | Sequence[float] | None,
        valid: int | None = None,
        ids: Sequence[Hashable | None] | None = None,
        rejected: Sequence[Rejection | None] | None = None,
    ) -> Any:
        """A whole step; see `StreamProcessor.__call__`."""
        runtime = self._runtime
        with runtime.step_lock.step():
            runtime.prepare()
            runtime.engine.check_mode()
            entries = batch_size(call.frames)
            real = real_frames(valid, entries)
            names: Sequence[Hashable] = (DEFAULT_STREAM,)
            if streams is not None:
                names = stream_ids(streams, entries, real)
            known_by = frame_ids(ids, entries, real)
            kept_out = rejections(rejected, entries, real)
            admission = runtime.streams.plan(() if real == 0 else names)
            elapsed, newest = camera_time(
                pts_seconds,
                admission,
                real or 1,
                entries or 1,
                runtime.newest_pts,
                self._clock,
            )
            where = StepRows(
                admission.rows,
                None if len(admission.rows) < 2 else padded(admission.entries, entries),
                elapsed,
                None if real == entries else real,
                entries,
                ids=known_by,
            )
            watch = Stopwatch(runtime.engine.device)
            frames = frames_by_stream(admission, real)
            undo = runtime.admit(admission)
            counts = tuple(frames.values())
            idle = self._idle(where, counts)
            if not idle:
                where = replace(where, elapsed_seconds=runtime.duty.since(where.rows, elapsed))
            if runtime.updating and where.rows and not idle:
                if kept_out is not None:
                    where = self._without(where, tuple(frames), kept_out)
                where = self._guarded(call, where, frames)
            try:
                output, step = self._forward(call, where, entries, watch, idle=idle)
            except BaseException as error:
                undo()
                runtime.post(ForwardFailed(step=runtime.steps, error=one_line(error)))
                raise
            runtime.announce(admission)
            runtime.newest_pts.update(newest)
            runtime.duty.passed(where.rows, elapsed, counts, adapted=not idle)
            if not idle:
                runtime.drift.pass_time(where.rows, where.elapsed_seconds)
            outcome, committed = self._outcome(step, where, idle=idle)
            if isinstance(step, Step) and step.own is not None and step.own.suspects:
                runtime.duty.suspect(where.rows)
            if committed is not None and runtime.drift.due(where.rows):
                with runtime.state_lock:
                    apart = runtime.engine.commits.apart(committed)
                    runtime.drift.read(runtime.steps, admission.streams, where.rows, apart)
            if committed is not None and runtime.mode == "adapt":
                self._passes.compare(call, where, admission.streams, output)
            facts = RecordedStep(runtime.steps, frames, where, newest, outcome)
            self._record(facts, committed, output)
            if committed is not None and committed.phase is not None:
                again, settled = self._passes.settle(call, where, step, committed, frames)
                if settled is not None:
                    self._record(replace(facts, settling=True), settled, again)
                    if runtime.timing == "synchronous" and runtime.mode == "adapt":
                        output = again
            runtime.drift.export(runtime.steps, call.frames, where)
            if committed is not None and runtime.keeping is not None and runtime.mode == "adapt":
                with runtime.state_lock:
                    runtime.keeping.stepped(runtime.steps, admission.streams, where.rows)
            if runtime.between is not None and runtime.mode == "adapt":
                self._look_between(idle)
            watch.mark()
            with runtime.state_lock:
                verdict = None if committed is None else committed.verdict
                runtime.ledger.settle(
                    StepFacts(runtime.steps, frames, admission.rows, watch, where.held),
                    outcome,
                    verdict,
                    where.gated,
                )
            runtime.steps += 1
            runtime.outbox.deliver()
            return output

    def _idle(self, where: StepRows, frames: Sequence[int]) -> bool:
        """Whether a batch is between two that adapt."""
        runtime = self._runtime
        if runtime.duty.every == 1 or runtime.mode != "adapt" or not where.rows:
            return False
        if runtime.updating:
            self._act()
        if where.ids is not None and runtime.guard.guard is not None:
            return False  # labels will come for what it answers
        return not runtime.duty.due(where.rows, where.elapsed_seconds, frames)

    def _act(self) -> None:
        """Carry out what was decided since the last step."""
        runtime = self._runtime

        def act() -> None:
            with runtime.state_lock:
                runtime.domains.act(runtime.steps)
                runtime.guard.act(runtime.steps)

        runtime.beside("guard", act)

    def _look_between(self, idle: bool) -> None:
        """See to the engine for batches in between; after those, only where there is none."""
        runtime = self._runtime
        between = runtime.between
        assert between is not None
        if not idle or not between.ready:
            with runtime.state_lock:
                between.look(runtime.steps, settled=runtime.settled)

    def _without(
        self,
        where: StepRows,
        streams: Sequence[Hashable],
        rejected: Sequence[Rejection | None],
    ) -> StepRows:
        """The step's rows, without the frames that the caller wants nothing learned from."""
        runtime = self._runtime
        where, counts = without(where, rejected, runtime.engine.device)
        for (place, reason), count in counts.items():
            runtime.outbox.post(
                FramesRejected(
                    step=runtime.steps, stream=streams[place], frames=count, reason=reason
                )
            )
        return where

    def _guarded(self, call: Call, where: StepRows, frames: Mapping[Hashable, int]) -> StepRows:
        """The step's rows, and what the guard keeps from them."""
        runtime = self._runtime
        try:
            with runtime.state_lock:
                runtime.domains.act(runtime.steps)
                runtime.guard.act(runtime.steps)
                where = runtime.guard.admit(runtime.steps, call.frames, frames, where)
            runtime.ledger.trouble.pop("guard", None)
            return where
        except Exception as error:
            if not runtime.ledger.trouble.get("guard"):
                log.exception("the guard failed; steps go on without it")
            runtime.ledger.trouble["guard"] = f"the guard failed: {one_line(error)}"
            runtime.outbox.post(GuardFailed(step=runtime.steps, error=one_line(error)))
            return where

    def _record(self, facts: RecordedStep, committed: Committed | None, output: Any) -> None:
        """Put a commit into the journal, before the next one changes the rows."""
        runtime = self._runtime
        if runtime.recorder is not None:
            with runtime.state_lock:
                runtime.recorder.record(facts, committed, output)

    def _forward(
        self,
        call: Call,
        where: StepRows,
        entries: int | None,
        watch: Stopwatch,
        *,
        idle: bool,
    ) -> tuple[Any, Step | CapturedStep | None]:
        """The caller's output, and the step to commit: in shadow mode, the candidate's."""
        runtime, engine = self._runtime, self._runtime.engine
        adapting = runtime.mode == "adapt" and bool(where.rows) and not runtime.never_updates
        step: Step | CapturedStep | None = None
        watch.mark()
        capture = self._capture_for(call) if adapting and not idle else None
        if capture is not None:
            with runtime.step_lock.forward(), runtime.state_lock:
                output, step = capture(call.frames, where, observe=runtime.updating)
            watch.mark()
            return output, step
        with runtime.step_lock.forward(), self._buffers_for_autograd():
            if idle:
                output = self._between(call, where, entries)
            elif adapting and (runtime.updating or engine.needs_arming):
                with engine.armed(where, entries=entries, observe=runtime.updating) as step:
                    output = call(runtime)
            else:
                output = call(runtime)
        watch.mark()
        due = runtime.mode == "shadow" and runtime.steps % self._shadow_every == 0
        if due and runtime.updating and where.rows:
            step = self._passes.candidate(call, where, entries, output)
        return output, step

    def _capture_for(self, call: Call) -> Capture | None:
        """The captured step that a batch fits in; None, and an event, where it fits in none."""
        runtime = self._runtime
        if not len(runtime.captures):
            return None
        reason = "the model was given more than frames"
        if not (call.args or call.kwargs):
            reason = "gradients are enabled: use torch.inference_mode()"
            if not torch.is_grad_enabled():
                capture = runtime.captures.find(call.frames)
                if capture is not None:
                    return capture
                reason = "no step was captured for such frames"
        runtime.outbox.post(CaptureMissed(step=runtime.steps, reason=reason))
        return None

    def _between(self, call: Call, where: StepRows, entries: int | None) -> Any:
        """A batch between two that adapt: nothing but the model, or what was built of it."""
        runtime, engine = self._runtime, self._runtime.engine
        between = runtime.between
        if between is not None and between.answers(call.frames, bool(call.args or call.kwargs)):
            answered, output = between(call.frames, runtime.steps)
            if answered:
                return output
        if engine.binding.bound and engine.head is None:
            return call(runtime)
        with engine.armed(where, entries=entries, observe=False, correct=False):
            return call(runtime)

    def _outcome(
        self, step: Step | CapturedStep | None, where: StepRows, *, idle: bool
    ) -> tuple[Outcome, Committed | None]:
        """Commit what there is to commit, and say what came of it."""
        runtime = self._runtime
        if not where.rows:
            return "empty", None
        if idle:
            return ("between" if runtime.updating else "frozen"), None
        if step is None or not step.observe:
            shadow = runtime.mode == "shadow" and runtime.updating
            return ("idle" if shadow else "frozen"), None
        self._note_unobserved(step)
        trouble = runtime.ledger.trouble
        if len(step.unobserved) == len(runtime.engine.layers):
            trouble["unobserved"] = "no adaptable layer was executed through its tap"
            return "unobserved", None
        trouble.pop("unobserved", None)
        try:
            with runtime.state_lock:
                if isinstance(step, CapturedStep):
                    committed = step.committed
                else:
                    committed = runtime.engine.commit(step, where)
        except Exception as error:
            log.exception("the update failed; the statistics are unchanged")
            trouble["update"] = f"the update failed: {one_line(error)}"
            runtime.outbox.post(UpdateFailed(step=runtime.steps, error=one_line(error)))
            return "failed", None
        trouble.pop("update", None)
        held = where.held is not None and all(where.held)
        return ("held" if held else "updated"), committed

    def _note_unobserved(self, step: Step | CapturedStep) -> None:
        missing = step.unobserved
        if missing and missing != self._unobserved:
            self._runtime.outbox.post(LayersUnobserved(step=self._runtime.steps, layers=missing))
        self._unobserved = missing

    def _buffers_for_autograd(self) -> AbstractContextManager[None]:
        """With grad enabled the graph keeps the statistics it read, and the bank moves on."""
        binding = self._runtime.engine.binding
        if torch.is_grad_enabled() and binding.bound:
            return binding.detached()
        return nullcontext()
