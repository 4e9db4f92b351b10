"""The stream processor: wraps a deployed model and keeps its statistics true to its streams."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from streamadapt import events as ev
from streamadapt.batch import batch_size, camera_time, frames_by_stream, stream_ids
from streamadapt.describe import Description, Status, describe_layers
from streamadapt.drift import Drift
from streamadapt.engine import AdaptationEngine, StepRows, Verdict
from streamadapt.errors import ConfigurationError, ModelStateError
from streamadapt.estimators import EMA, Estimator, Frozen
from streamadapt.estimators.base import Timing
from streamadapt.ledger import Ledger, StepFacts
from streamadapt.moments import Moments
from streamadapt.outbox import EventHandler, Outbox
from streamadapt.readout import Readouts, Stopwatch
from streamadapt.shadow import compare_outputs
from streamadapt.snapshots import SOURCE, Snapshot, SnapshotRing
from streamadapt.steplock import StepLock
from streamadapt.streams import DEFAULT_STREAM, Admission, StreamRows, WhenFull
from streamadapt.taps import Step, take_inventory
from streamadapt.taps.inventory import LayerFilter

Mode = Literal["adapt", "shadow"]
log = logging.getLogger("streamadapt")


class StreamProcessor:
    """Runs a model on live streams while its BatchNorm statistics follow them.

    Wraps the model in place. Each call is one step: the forward, then one commit of what its
    layers saw, for all of them or for none. The model's answers come first: whatever goes wrong
    in the adaptation, the output is returned, and an event says what happened.

    Args:
        model: in eval mode, with BatchNorm layers that have running statistics. May be compiled,
            before or after.
        estimator: the update rule; `EMA()` by default.
        timing: `lagged`: a batch is normalised with the statistics before it, so that a frame's
            output never depends on its batch-mates' values. `synchronous`: with statistics that
            include it, layer by layer, as most papers do.
        mode: `adapt`, or `shadow`: outputs are the source model's, bit for bit, and every
            `shadow_every`-th batch the adapted candidate runs beside it.
        max_streams: rows of statistics. With more than one, every frame is normalised with its
            own stream's row.
        when_full: what an unknown stream meets when all rows are taken: `error`, or `evict` the
            stream that was longest without frames.
        on_event: called with every event; see `subscribe`.
        backend: how moments are collected; `auto` picks the best at hand, which is `hooks`.
        layers: adapt only these: names, or a predicate of `(name, module)`. None: all.
        frames_per_row: how many items a layer's leading dimension has for each batch entry, for
            models that fold time or crops into the batch.
        shadow_every: batches from one candidate pass to the next.
        max_snapshots: how many snapshots are kept; the oldest goes first.
        clock: seconds; the camera time of frames without `pts_seconds`.

    Raises:
        ConfigurationError: an argument out of range, or a combination that makes no sense.
        UnsupportedModelError: nothing to adapt, or something in the way.
        ModelStateError: a BatchNorm layer is in training mode.

    Example:
        >>> import torch, streamadapt as sa
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).eval()
        >>> with sa.StreamProcessor(model, estimator=sa.estimators.EMA(momentum=0.5)) as processor:
        ...     _ = processor(torch.full((1, 3, 2, 2), 4.0))
        ...     print(model[0].running_mean.tolist())
        [2.0, 2.0, 2.0]
        >>> model[0].running_mean.tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        estimator: Estimator | None = None,
        timing: Timing = "lagged",
        mode: Mode = "adapt",
        max_streams: int = 1,
        when_full: WhenFull = "error",
        on_event: EventHandler | None = None,
        backend: Literal["auto", "hooks"] = "auto",
        layers: LayerFilter | None = None,
        frames_per_row: int = 1,
        shadow_every: int = 10,
        max_snapshots: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        estimator = EMA() if estimator is None else estimator
        _check_types(model, estimator)
        _check_choice("timing", timing, ("lagged", "synchronous"))
        _check_choice("mode", mode, ("adapt", "shadow"))
        _check_choice("when_full", when_full, ("error", "evict"))
        _check_choice("backend", backend, ("auto", "hooks"))
        _check_at_least_one(
            max_streams=max_streams,
            frames_per_row=frames_per_row,
            shadow_every=shadow_every,
            max_snapshots=max_snapshots,
        )
        if timing not in estimator.timings:
            raise ConfigurationError(
                f'{type(estimator).__name__} is a synchronous method: give timing="synchronous". '
                "One batch late it would be something else."
            )
        inventory = take_inventory(model, layers=layers)
        inventory.require_adaptable()
        for layer in inventory.layers:
            layer.require_inference()
        self.model = model
        self.max_streams = max_streams
        self._inventory = inventory
        self._mode: Mode = mode
        self._timing: Timing = timing
        self._shadow_every = shadow_every
        self._clock = clock
        self._engine = AdaptationEngine(
            inventory,
            estimator=estimator,
            timing=timing,
            rows=max_streams,
            bound=self._should_bind(),
            frames_per_row=frames_per_row,
        )
        self._never_updates = isinstance(estimator, Frozen)
        self._streams = StreamRows(max_streams, when_full=when_full)
        self._snapshots = SnapshotRing(max_snapshots)
        self._outbox = Outbox(on_event)
        self._readouts = Readouts()
        self._ledger = Ledger(self._outbox, self._readouts)
        self._step_lock = StepLock()
        self._state_lock = threading.RLock()
        self._closed = False
        self._frozen = False
        self._steps = 0
        self._newest_pts: dict[int, float] = {}
        self._unobserved: tuple[str, ...] = ()

    # A step ------------------------------------------------------------------------------------

    def __call__(
        self,
        frames: Any,
        *args: Any,
        streams: Hashable | Sequence[Hashable] | None = None,
        pts_seconds: float | Sequence[float] | None = None,
        forward_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model on a batch, then commit what its layers saw.

        Args:
            frames: the model's first argument, handed on untouched.
            *args: further arguments of the model.
            streams: which stream each frame belongs to, one entry a frame; a single name means
                all of them, None the stream "default".
            pts_seconds: camera time of each frame, or of all; the clock's when None.
            forward_kwargs: keyword arguments for the model whose names are taken here.
            **kwargs: keyword arguments for the model.

        Returns:
            What the model returns.

        Raises:
            StreamError: `streams` or `pts_seconds` does not fit. Before the forward, with nothing
                changed; only that a layer cannot be mapped to frames is found out inside it.
            ModelStateError: a BatchNorm layer is in training mode, or the processor is unwrapped.
            ConcurrencyError: called from inside a step of this processor.
        """
        kwargs.update(forward_kwargs or {})
        with self._step_lock.step():
            self._prepare()
            self._engine.check_mode()
            entries = batch_size(frames)
            empty = entries == 0
            ids: Sequence[Hashable] = (DEFAULT_STREAM,)
            if streams is not None:
                ids = stream_ids(streams, entries)
            admission = self._streams.plan(() if empty else ids)
            elapsed, newest = camera_time(
                pts_seconds, admission, entries or 1, self._newest_pts, self._clock
            )
            where = StepRows(
                admission.rows, None if len(admission.rows) < 2 else admission.entries, elapsed
            )
            undo = self._admit(admission)
            try:
                watch = Stopwatch(self._engine.device)
                output, step = self._forward(frames, args, kwargs, where, entries, watch)
            except BaseException as error:
                undo()
                self._outbox.post(ev.ForwardFailed(step=self._steps, error=_one_line(error)))
                self._outbox.deliver()
                raise
            self._newest_pts.update(newest)
            outcome: ev.Outcome = "empty" if empty else "idle" if self._idle else "frozen"
            verdict = None
            if step is not None and step.observe and not empty:
                outcome, verdict = self._commit(step, where)
            watch.mark()
            facts = StepFacts(
                self._steps, frames_by_stream(admission, entries), admission.rows, watch
            )
            with self._state_lock:
                self._ledger.settle(facts, outcome, verdict)
            self._steps += 1
            self._outbox.deliver()
            return output

    def _forward(
        self,
        frames: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        where: StepRows,
        entries: int | None,
        watch: Stopwatch,
    ) -> tuple[Any, Step | None]:
        """The caller's output, and the step to commit: in shadow mode, the candidate's."""
        adapting = self._mode == "adapt" and self._updating and bool(where.rows)
        moving = self._mode == "adapt" and not self._engine.binding.bound and bool(where.rows)
        step: Step | None = None
        watch.mark()
        with self._step_lock.forward(), self._buffers_for_autograd():
            if adapting or (moving and not self._never_updates):
                with self._engine.armed(where, entries=entries, observe=adapting) as step:
                    output = self.model(frames, *args, **kwargs)
            else:
                output = self.model(frames, *args, **kwargs)
        watch.mark()
        due = self._steps % self._shadow_every == 0
        if self._mode == "shadow" and self._updating and due and where.rows:
            step = self._candidate(frames, args, kwargs, where, entries, output)
        return output, step

    def _candidate(
        self,
        frames: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        where: StepRows,
        entries: int | None,
        source_output: Any,
    ) -> Step | None:
        """Shadow mode's second forward, on adapted statistics; leaves no trace in the model."""
        number = self._steps
        cuda = [self._engine.device] if self._engine.device.type == "cuda" else []
        try:
            with (
                self._step_lock.forward(),
                torch.random.fork_rng(devices=cuda),
                torch.no_grad(),
                self._engine.armed(where, entries=entries, observe=True) as step,
            ):
                output = self.model(frames, *args, **kwargs)
            compared = compare_outputs(source_output, output)
        except Exception as error:
            self._ledger.trouble["shadow"] = f"the candidate pass failed: {_one_line(error)}"
            self._outbox.post(ev.ShadowFailed(step=number, error=_one_line(error)))
            return None
        self._ledger.trouble.pop("shadow", None)
        if compared is not None:
            self._readouts.submit(
                compared,
                lambda values: self._outbox.post(
                    ev.ShadowCompared(
                        step=number,
                        frames=step.entries or 0,
                        agreement=None if values[0] != values[0] else values[0],
                        relative_difference=values[1],
                    )
                ),
            )
        return step

    def _commit(self, step: Step, where: StepRows) -> tuple[ev.Outcome, Verdict | None]:
        """Write the step's moments; a failure is an event, never the caller's exception."""
        unobserved = step.unobserved
        if unobserved != self._unobserved:
            self._unobserved = unobserved
            if unobserved:
                self._outbox.post(ev.LayersUnobserved(step=self._steps, layers=unobserved))
        trouble = self._ledger.trouble
        if len(unobserved) == len(self._engine.layers):
            trouble["unobserved"] = "no adaptable layer was executed through its tap"
            return "unobserved", None
        trouble.pop("unobserved", None)
        try:
            with self._state_lock:
                verdict = self._engine.commit(step, where)
        except Exception as error:
            log.exception("the update failed; the statistics are unchanged")
            trouble["update"] = f"the update failed: {_one_line(error)}"
            self._outbox.post(ev.UpdateFailed(step=self._steps, error=_one_line(error)))
            return "failed", None
        trouble.pop("update", None)
        return "updated", verdict

    # State -------------------------------------------------------------------------------------

    def snapshot(self, name: str | None = None, *, stream: Hashable | None = None) -> str:
        """Copy the committed state of a stream, or of all of them, under a name.

        Args:
            name: what to call it; made from the step number when None. A name in use is replaced.
            stream: only this one.

        Returns:
            The name.

        Raises:
            ConfigurationError: the name "source", which is taken.
            StreamError: unknown stream.
        """
        with self._step_lock.change():
            self._prepare()
            if name == SOURCE:
                raise ConfigurationError(
                    f'"{SOURCE}" is the state that every stream starts from. Choose another name.'
                )
            streams = self._chosen(stream)
            name = self._snapshots.free_name(self._steps) if name is None else name
            with self._state_lock:
                state = self._engine.bank.capture([self._streams.row(s) for s in streams])
            dropped = self._snapshots.add(Snapshot(name, self._steps, streams, state))
            self._outbox.post(ev.SnapshotTaken(step=self._steps, name=name, streams=streams))
            if dropped is not None:
                self._outbox.post(
                    ev.SnapshotDropped(step=self._steps, name=dropped, reason="capacity")
                )
            self._outbox.deliver()
            return name

    def rollback(
        self, to: str | None = None, *, stream: Hashable | None = None, reason: str = "manual"
    ) -> None:
        """Put streams back on an earlier state.

        Args:
            to: a snapshot's name, the latest when None, or "source".
            stream: only this one; otherwise every stream that has a row now and stands in the
                snapshot.
            reason: shown in the event and in the counter.

        Raises:
            SnapshotError: no such snapshot, or it does not hold the stream.
            StreamError: unknown stream.
        """
        with self._step_lock.change():
            self._prepare()
            if to == SOURCE:
                name, streams = SOURCE, self._chosen(stream)
                with self._state_lock:
                    self._engine.reset([self._streams.row(s) for s in streams])
            else:
                saved = self._snapshots.get(to)
                name, streams = saved.name, saved.streams
                if stream is None:
                    streams = tuple(s for s in streams if s in self._streams.streams)
                else:
                    streams = (self._streams.resolve(stream),)
                state = saved.select(streams)
                with self._state_lock:
                    self._engine.restore([self._streams.row(s) for s in streams], state)
            self._outbox.post(
                ev.RolledBack(step=self._steps, to=name, streams=streams, reason=reason)
            )
            self._outbox.deliver()

    def freeze(self) -> None:
        """Stop updating; outputs go on with the statistics as they are."""
        with self._step_lock.change():
            self._frozen = True
            self._outbox.post(ev.AdaptationFrozen(step=self._steps))
            self._outbox.deliver()

    def resume(self) -> None:
        """Go on updating after `freeze`."""
        with self._step_lock.change():
            self._frozen = False
            self._outbox.post(ev.AdaptationResumed(step=self._steps))
            self._outbox.deliver()

    def drop_stream(self, stream: Hashable) -> None:
        """Forget a stream and free its row.

        Raises:
            StreamError: unknown stream.
        """
        with self._step_lock.change():
            self._prepare()
            with self._state_lock:
                row = self._streams.remove(stream)
                self._engine.reset([row])
                self._forget(row)
            self._outbox.post(ev.StreamDropped(step=self._steps, stream=stream, evicted=False))
            self._outbox.deliver()

    @property
    def mode(self) -> Mode:
        """`adapt` or `shadow`; setting it puts every stream back on the source."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        _check_choice("mode", mode, ("adapt", "shadow"))
        with self._step_lock.change():
            self._prepare()
            if mode == self._mode:
                return
            with self._state_lock:
                # Moments measured under source statistics are never installed in all layers.
                self._engine.reset(range(self.max_streams))
                self._mode = mode
                self._engine.set_bound(self._should_bind())
            self._outbox.post(ev.ModeChanged(step=self._steps, mode=mode))
            self._outbox.deliver()

    def flush(self) -> None:
        """Wait for the device and deliver the events that are still on their way."""
        with self._step_lock.change():
            with self._state_lock:
                self._readouts.flush()
            self._outbox.deliver()

    def unwrap(self) -> nn.Module:
        """Give the model back bit-exactly, and return it; the processor ends here."""
        with self._step_lock.change():
            if not self._closed:
                self._reconcile()
                with self._state_lock:
                    self._readouts.flush()
                    self._engine.close()
                    self._closed = True
                self._outbox.post(ev.Unwrapped(step=self._steps))
                self._outbox.deliver()
        return self.model

    def __enter__(self) -> StreamProcessor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unwrap()

    # Read-outs ---------------------------------------------------------------------------------

    def statistics(self, stream: Hashable | None = None) -> dict[str, Moments]:
        """A copy of a stream's committed statistics, by layer, `[channels]` float64.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        with self._state_lock:
            self._require_open()
            return self._engine.moments(self._row(stream))

    def drift(self, stream: Hashable | None = None) -> Drift:
        """How far a stream's statistics lie from the source. Waits for the device.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        with self._state_lock:
            self._require_open()
            values = self._engine.distances(self._row(stream)).tolist()
            shown = self._streams.resolve(stream) if self._streams.streams else DEFAULT_STREAM
        names = [layer.name for layer in self._engine.layers]
        return Drift(shown, dict(zip(names, values, strict=True)), sum(values) / len(values))

    def adapted_model(self, stream: Hashable | None = None) -> nn.Module:
        """A plain copy of the model with a stream's statistics baked in; compact, without taps.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        with self._step_lock.change():
            self._prepare()
            with self._state_lock:
                return self._engine.adapted_copy(self.model, self._row(stream))

    def update_age_seconds(self, stream: Hashable | None = None) -> float | None:
        """Seconds since a stream's statistics were committed; None if they never were."""
        with self._state_lock:
            return self._ledger.age_seconds(self._row(stream))

    @property
    def streams(self) -> tuple[Hashable, ...]:
        """Streams that have a row, the one longest without frames first."""
        with self._state_lock:
            return self._streams.streams

    @property
    def frozen(self) -> bool:
        """Whether updates are stopped."""
        return self._frozen

    @property
    def event_counts(self) -> dict[str, int]:
        """How many events of each class there were."""
        return dict(self._outbox.counts)

    @property
    def handler_errors(self) -> int:
        """How many calls of event handlers raised; each was logged."""
        return self._outbox.handler_errors

    @property
    def closed(self) -> bool:
        """Whether the model has been unwrapped."""
        return self._closed

    @property
    def status(self) -> Status:
        """Health of the runtime: what keeps it from updating, if anything does."""
        with self._state_lock:
            ages = [self._ledger.age_seconds(row) for row in self._ledger.last_update]
            reasons = tuple(self._ledger.trouble.values())
        if self._closed:
            reasons = (*reasons, "unwrapped")
        known = [age for age in ages if age is not None]
        return Status(not reasons, reasons, self._steps, min(known, default=None))

    def describe(self) -> Description:
        """Configuration and state, as a value that prints well."""
        engine = self._engine
        return Description(
            model=self._inventory.model,
            device=str(engine.device),
            estimator=repr(engine.estimator),
            timing=self._timing,
            mode=self._mode,
            backend="hooks",
            statistics=engine.binding.manner,
            frozen=self._frozen,
            max_streams=self.max_streams,
            streams=self.streams,
            snapshots=self._snapshots.names,
            bytes_per_stream=engine.bank.bytes_per_row,
            layers=describe_layers(engine.layers, tap="hooks"),
            notes=self._inventory.notes,
        )

    def subscribe(self, handler: EventHandler) -> Callable[[], None]:
        """Call `handler` with every event from now on; returns a function that ends it."""
        return self._outbox.subscribe(handler)

    # Inside ------------------------------------------------------------------------------------

    @property
    def _updating(self) -> bool:
        return not (self._frozen or self._never_updates)

    @property
    def _idle(self) -> bool:
        return self._mode == "shadow" and self._updating

    def _should_bind(self) -> bool:
        return self._mode == "adapt" and self._timing == "lagged" and self.max_streams == 1

    def _buffers_for_autograd(self) -> AbstractContextManager[None]:
        """With grad enabled the graph keeps the statistics it read, and the bank moves on."""
        if torch.is_grad_enabled() and self._engine.binding.bound:
            return self._engine.binding.detached()
        return nullcontext()

    def _require_open(self) -> None:
        if self._closed:
            raise ModelStateError(
                "The model has been unwrapped. Wrap it again with a new StreamProcessor."
            )

    def _prepare(self) -> None:
        self._require_open()
        self._reconcile()

    def _reconcile(self) -> None:
        """Follow what was done to the model's buffers from outside."""
        with self._state_lock:
            repair = self._engine.reconcile()
        if repair is None:
            return
        if not repair.source_replaced:
            self._outbox.post(
                ev.BuffersRebound(step=self._steps, device=repair.device, dtypes=repair.dtypes)
            )
            return
        dropped = self._snapshots.clear()
        for name in dropped:
            self._outbox.post(
                ev.SnapshotDropped(step=self._steps, name=name, reason="source_replaced")
            )
        self._outbox.post(
            ev.SourceReplaced(
                step=self._steps,
                layers=len(self._engine.layers),
                snapshots_dropped=len(dropped),
            )
        )

    def _admit(self, admission: Admission) -> Callable[[], None]:
        """Give new streams their rows; returns what takes it back if the forward raises."""
        with self._state_lock:
            saved = self._streams.save()
            fresh = [admission.rows[admission.streams.index(s)] for s in admission.new]
            displaced = [saved[stream] for stream in admission.evicted]
            kept = self._engine.bank.capture(displaced) if displaced else None
            self._streams.apply(admission)
            if fresh:
                self._engine.reset(fresh)
        waiting: list[ev.Event] = [
            ev.StreamDropped(step=self._steps, stream=stream, evicted=True)
            for stream in admission.evicted
        ] + [
            ev.StreamAdmitted(step=self._steps, stream=stream, row=row)
            for stream, row in zip(admission.new, fresh, strict=True)
        ]
        for event in waiting:
            self._outbox.post(event)

        def undo() -> None:
            with self._state_lock:
                self._streams.load(saved)
                if kept is not None:
                    self._engine.restore(displaced, kept)

        return undo

    def _chosen(self, stream: Hashable | None) -> tuple[Hashable, ...]:
        """The named stream, or all; before the first frame, the default one."""
        if stream is not None:
            return (self._streams.resolve(stream),)
        if not self._streams.streams:
            self._admit(self._streams.plan((DEFAULT_STREAM,)))
        return self._streams.streams

    def _row(self, stream: Hashable | None) -> int:
        """A stream's row; before the first frame, any row is the source."""
        if stream is None and not self._streams.streams:
            return 0
        return self._streams.row(stream)

    def _forget(self, row: int) -> None:
        self._newest_pts.pop(row, None)
        self._ledger.forget(row)

    def __repr__(self) -> str:
        return (
            f"StreamProcessor({self._inventory.model}, layers={len(self._engine.layers)}, "
            f"estimator={self._engine.estimator!r}, timing={self._timing!r}, mode={self._mode!r}, "
            f"streams={len(self._streams.streams)}/{self.max_streams})"
        )


def _check_types(model: Any, estimator: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(estimator, Estimator):
        raise ConfigurationError(
            "`estimator` must be an instance of streamadapt.estimators.Estimator, got "
            f"{estimator!r}."
        )


def _check_choice(name: str, value: object, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ConfigurationError(
            f"`{name}` must be {' or '.join(repr(one) for one in legal)}, got {value!r}."
        )


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"`{name}` must be a whole number from 1, got {value!r}.")


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
