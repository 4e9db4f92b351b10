"""What a processor consists of, and the rules for changing it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Literal

from torch import nn

from streamadapt.alignment import Coral
from streamadapt.alignment.head import AlignedHead
from streamadapt.between.builder import Builder
from streamadapt.between.running import Between
from streamadapt.capturing import Captures
from streamadapt.domains import DomainBook
from streamadapt.drift.alarms import Alarms
from streamadapt.duty import DutyCycle
from streamadapt.engine import AdaptationEngine
from streamadapt.errors import ModelStateError, one_line
from streamadapt.estimators import Estimator, Frozen
from streamadapt.estimators.base import Timing
from streamadapt.events import (
    BuffersRebound,
    CapturesDropped,
    Event,
    GuardFailed,
    KernelsUnavailable,
    Phase,
    SnapshotDropped,
    SourceReplaced,
    StreamAdmitted,
    StreamBegan,
    StreamDropped,
)
from streamadapt.guard.settings import Guard
from streamadapt.guarding import GuardBook
from streamadapt.journal import Journal, Recorder
from streamadapt.keeping import Keeping
from streamadapt.ledger import Ledger
from streamadapt.ops.compiled import Kernels
from streamadapt.ops.device import DeviceOperations
from streamadapt.outbox import EventHandler, Outbox
from streamadapt.profile import SourceProfile
from streamadapt.readout import Readouts
from streamadapt.settling import PhaseBook
from streamadapt.snapshots import SnapshotRing
from streamadapt.steplock import StepLock
from streamadapt.store import FileStore
from streamadapt.streams import DEFAULT_STREAM, Admission, StreamRows, WhenFull
from streamadapt.taps import Inventory
from streamadapt.watching import DriftBook
from streamadapt.worlds import Worlds

Mode = Literal["adapt", "shadow"]

log = logging.getLogger("streamadapt")


class Runtime:
    """State that steps and state changes share.

    `step_lock` is held for a whole step or a whole change; `state_lock` for the moments in which
    rows, their owners or the books are written or read, so that a reader never waits for a
    forward and never sees half an update.
    """

    def __init__(
        self,
        model: nn.Module,
        inventory: Inventory,
        *,
        estimator: Estimator,
        timing: Timing,
        mode: Mode,
        max_streams: int,
        when_full: WhenFull,
        frames_per_row: int,
        max_snapshots: int,
        on_event: EventHandler | None,
        alignment: Coral | None = None,
        journal: Journal | None = None,
        profile: SourceProfile | None = None,
        class_scores: bool = True,
        alarms: Alarms | None = None,
        guard: Guard | None = None,
        domains: int = 0,
        kernels: Kernels | DeviceOperations | None = None,
        packs: bool = False,
        refold_every: int = 8,
        adapt_every: int = 1,
        between: Builder | None = None,
        store: FileStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.profile = profile
        self.inventory = inventory
        self.timing = timing
        self.mode = mode
        self.max_streams = max_streams
        self.engine = AdaptationEngine(
            inventory,
            estimator=estimator,
            timing=timing,
            rows=max_streams,
            bound=self.should_bind,
            frames_per_row=frames_per_row,
            head=AlignedHead.of(alignment, model, rows=max_streams, frames_per_row=frames_per_row),
            kernels=kernels,
            model=model,
            packs=packs,
            refold_every=refold_every,
        )
        self.engine.commits.on_kernels_unavailable = lambda reason: self.outbox.post(
            KernelsUnavailable(step=self.steps, reason=reason)
        )
        self.never_updates = isinstance(estimator, Frozen) and alignment is None
        self.streams = StreamRows(max_streams, when_full=when_full)
        self.snapshots = SnapshotRing(max_snapshots)
        self.outbox = Outbox(on_event)
        self.readouts = Readouts()
        self.ledger = Ledger(self.outbox, self.readouts)
        self.drift = DriftBook(
            None if self.never_updates else alarms,
            outbox=self.outbox,
            readouts=self.readouts,
            layers=len(inventory.layers),
            clock=clock,
            on_alarm=self._alarmed,
        )
        self.phases = PhaseBook(
            self.outbox,
            self.readouts,
            judges=class_scores,
            on_change=self._phase_changed,
        )
        self.duty = DutyCycle(
            adapt_every,
            settling=lambda rows: self.phases.due(rows) if self.engine.has_phases else (),
        )
        self.guard = GuardBook(
            None if self.never_updates else guard,
            engine=self.engine,
            outbox=self.outbox,
            readouts=self.readouts,
            phase_of=self.phases.of,
            class_scores=class_scores,
        )
        self.worlds = Worlds(
            engine=self.engine,
            readouts=self.readouts,
            on_other=self.drift.other_world,
            profile=profile,
            on=self.drift.alarms is not None or domains > 0,
        )
        self.domains = DomainBook(
            domains,
            engine=self.engine,
            worlds=self.worlds,
            outbox=self.outbox,
            readouts=self.readouts,
        )
        self.captures = Captures()
        self.engine.on_displaced = self._displaced
        self.between = None
        if between is not None:
            self.between = Between(
                between,
                model=model,
                engine=self.engine,
                outbox=self.outbox,
                readouts=self.readouts,
                trouble=self.ledger.trouble,
            )
        self.recorder = (
            None
            if journal is None
            else Recorder(
                journal,
                engine=self.engine,
                readouts=self.readouts,
                outbox=self.outbox,
                timing=timing,
                mode=lambda: self.mode,
            )
        )
        self.keeping = None if store is None else self._begin_keeping(store, clock)
        self.step_lock = StepLock()
        self.state_lock = threading.RLock()
        self.frozen = False
        self.closed = False
        self.steps = 0
        self.newest_pts: dict[int, float] = {}
        self.beginnings: dict[Hashable, tuple[Hashable, str | None]] = {}
        self._began: dict[Hashable, bool] = {}  # of which nothing has been told

    def _begin_keeping(self, store: FileStore, clock: Callable[[], float]) -> Keeping:
        try:
            return Keeping(
                store,
                engine=self.engine,
                outbox=self.outbox,
                trouble=self.ledger.trouble,
                clock=clock,
            )
        except BaseException:
            if self.recorder is not None:
                self.recorder.close(0)
            self.engine.close()  # the model is as it was
            raise

    def _displaced(self, rows: Iterable[int]) -> None:
        rows = list(rows)
        self.phases.forget(rows)
        self.drift.forget(rows)
        self.guard.displaced(rows)
        self.duty.forget(rows)
        if self.between is not None:
            self.between.forget()

    def _alarmed(self, row: int) -> None:
        self.guard.suspect(row)
        self.duty.alarmed(row)

    @property
    def settled(self) -> bool:
        """Whether no row is known to settle."""
        return not any(self.phases.due(range(self.max_streams)) if self.engine.has_phases else ())

    def _phase_changed(
        self, step: int, stream: Hashable, row: int, before: Phase | None, now: Phase
    ) -> None:
        self.drift.phase_changed(row, now)
        self.guard.phase_changed(step, stream, row, now)

        def remember() -> None:
            self.domains.phase_changed(step, stream, row, before, now)
            self.worlds.phase_changed(step, stream, row, before, now)

        self.beside("domain memory", remember)

    def beside(self, what: str, do: Callable[[], None]) -> None:
        """Do what a step's output does not wait for and must not suffer from."""
        try:
            do()
            self.ledger.trouble.pop(what, None)
        except Exception as error:
            log.exception("the %s failed; the output is returned", what)
            self.ledger.trouble[what] = f"the {what} failed: {one_line(error)}"
            self.outbox.post(GuardFailed(step=self.steps, error=one_line(error)))

    @property
    def updating(self) -> bool:
        """Whether batches may change statistics."""
        return not (self.frozen or self.never_updates)

    @property
    def should_bind(self) -> bool:
        """Whether the model can read its one row itself."""
        return self.mode == "adapt" and self.timing == "lagged" and self.max_streams == 1

    def require_open(self) -> None:
        """Refuse anything after `unwrap` (`ModelStateError`)."""
        if self.closed:
            raise ModelStateError(
                "The model has been unwrapped. Wrap it again with a new StreamProcessor."
            )

    def prepare(self) -> None:
        """Be ready for a step or a change: open, and in line with the model's buffers."""
        self.require_open()
        self.reconcile()

    def reconcile(self) -> None:
        """Follow what was done to the model's buffers from outside."""
        with self.state_lock:
            repair = self.engine.reconcile()
        if repair is None:
            return
        captures = self.captures.clear()
        if captures:
            self.outbox.post(CapturesDropped(step=self.steps, captures=captures))
        if self.between is not None:
            self.between.model_changed()
        if not repair.source_replaced:
            self.outbox.post(
                BuffersRebound(step=self.steps, device=repair.device, dtypes=repair.dtypes)
            )
            return
        self.profile = None  # it was of the source that is gone
        self.domains.forget(range(self.max_streams))  # and so were they
        self.worlds.source_replaced()
        if self.keeping is not None:
            self.keeping.source_replaced()
        dropped = self.snapshots.clear()
        for name in dropped:
            self.outbox.post(SnapshotDropped(step=self.steps, name=name, reason="source_replaced"))
        self.outbox.post(
            SourceReplaced(
                step=self.steps, layers=len(self.engine.layers), snapshots_dropped=len(dropped)
            )
        )

    def admit(self, admission: Admission) -> Callable[[], None]:
        """Give new streams their rows.

        Returns:
            What takes it back, evicted rows included, if the forward raises.
        """
        with self.state_lock:
            if self.keeping is not None:
                self.keeping.require_names(admission.new)
            saved = self.streams.save()
            fresh = [admission.rows[admission.streams.index(s)] for s in admission.new]
            displaced = [saved[stream] for stream in admission.evicted]
            kept = self.engine.bank.capture(displaced) if displaced else None
            self.streams.apply(admission)
            if fresh:
                self.engine.reset(fresh)
                self.guard.owners_changed(fresh)
                self.domains.forget(fresh)
                self.worlds.forget(fresh)
            resumed: set[Hashable] = set()
            if self.keeping is not None and self.mode == "adapt":
                if kept is not None:
                    self.keeping.put(self.steps, admission.evicted, kept)
                resumed = {
                    stream
                    for stream, row in zip(admission.new, fresh, strict=True)
                    if self.keeping.resume(stream, row)
                }
            for stream, row in zip(admission.new, fresh, strict=True):
                if stream in self.beginnings and stream not in resumed:
                    self._begin(stream, row)

        def undo() -> None:
            with self.state_lock:
                if self.keeping is not None:
                    self.keeping.undo(admission.new)
                self.streams.load(saved)
                if kept is not None:
                    self.engine.restore(displaced, kept)

        return undo

    def _begin(self, stream: Hashable, row: int) -> None:
        """Put a new stream on what it is to begin with."""
        like, domain = self.beginnings[stream]
        state = None
        if domain is not None:
            if like in self.streams.streams:
                state = self.domains.state(self.streams.row(like), domain)
        elif like in self.streams.streams:
            state = self.engine.bank.capture([self.streams.row(like)])
        elif self.keeping is not None:
            state = self.keeping.rows_of(like)
        if state is not None:
            self.engine.restore([row], state)
        self._began[stream] = state is not None

    def announce(self, admission: Admission) -> None:
        """Tell of streams that came and went, once it is certain, and start their books anew."""
        for stream in admission.evicted:
            self.outbox.post(StreamDropped(step=self.steps, stream=stream, evicted=True))
            if self.keeping is not None:
                self.keeping.gone(stream)
        for stream in admission.new:
            row = admission.rows[admission.streams.index(stream)]
            self.ledger.forget(row)
            self.outbox.post(StreamAdmitted(step=self.steps, stream=stream, row=row))
            if self.keeping is not None:
                self.keeping.announce(self.steps, stream)
            if stream in self._began:
                like, domain = self.beginnings[stream]
                found = self._began.pop(stream)
                self.outbox.post(
                    StreamBegan(
                        step=self.steps, stream=stream, like=like, domain=domain, found=found
                    )
                )

    def keep_all(self) -> None:
        """Hand all streams that changed to the store."""
        if self.keeping is None or self.mode != "adapt":
            return
        streams = self.keeping.changed(self.streams.streams)
        if streams:
            with self.state_lock:
                self.keeping.put(self.steps, streams, self.engine.bank.capture(self.rows(streams)))

    def chosen(self, stream: Hashable | None) -> tuple[Hashable, ...]:
        """The named stream, or all; before the first frame, the default one."""
        if stream is not None:
            return (self.streams.resolve(stream),)
        if not self.streams.streams:
            admission = self.streams.plan((DEFAULT_STREAM,))
            self.admit(admission)
            self.announce(admission)
        return self.streams.streams

    def rows(self, streams: tuple[Hashable, ...]) -> list[int]:
        """The rows of streams."""
        return [self.streams.row(stream) for stream in streams]

    def row(self, stream: Hashable | None) -> int:
        """A stream's row for reading; before the first frame, any row is the source."""
        if stream is None and not self.streams.streams:
            return 0
        return self.streams.row(stream)

    def forget(self, row: int) -> None:
        """A row has no owner any more."""
        self.newest_pts.pop(row, None)
        self.ledger.forget(row)

    def post(self, event: Event) -> None:
        """Post an event and deliver everything that waits."""
        self.outbox.post(event)
        self.outbox.deliver()
