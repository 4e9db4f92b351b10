"""The stream processor: wraps a deployed model and keeps its statistics true to its streams."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from streamadapt import events as ev
from streamadapt.alignment import Coral
from streamadapt.arguments import check_at_least_one, check_choice, check_types
from streamadapt.backends import Backend, choose_kernels
from streamadapt.between import Builder
from streamadapt.between.builder import Build, builder_of, check_between
from streamadapt.controls import Controls
from streamadapt.drift import Alarms
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import Estimator, Restarting
from streamadapt.estimators.base import Timing
from streamadapt.guard import Guard
from streamadapt.journal import Journal
from streamadapt.outbox import EventHandler
from streamadapt.passes import Call
from streamadapt.profile import SourceProfile
from streamadapt.runtime import Mode, Runtime
from streamadapt.stepping import Stepper
from streamadapt.store import FileStore
from streamadapt.streams import WhenFull
from streamadapt.taps import fingerprint_of, take_inventory
from streamadapt.taps.inventory import LayerFilter

_ALARMS = Alarms()
_REFOLD_BATCHES = 8  # that weights may be behind


class StreamProcessor(Controls):
    """Runs a model on live streams while its BatchNorm statistics follow them.

    Wraps the model in place. Each call is one step: the forward, then one commit of what its
    layers saw, for all of them or for none. The model's answers come first: whatever goes wrong
    in the adaptation, the output is returned, and an event says what happened.

    Args:
        model: in eval mode, with BatchNorm layers that have running statistics. May be compiled,
            before or after.
        estimator: the update rule; `Restarting()` by default.
        profile: what the source looks like, from `sa.calibrate`, or the file it was saved to. With
            it the default estimator knows from the start what is usual; without, it goes by
            defaults and its first frames, and `calibrated` is False.
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
        backend: `compiled` normalises and takes moments in one pass on the CPU, `triton` on CUDA;
            `hooks` looks at the layers' inputs with PyTorch's kernels and leaves the rest to the
            layers; `auto` is the device's own where that can be done, layer by layer. On the CPU
            all but `hooks` run convolutions on packed weights where that changes no bit, which
            takes the memory of the weights once more.
        layers: adapt only these: names, or a predicate of `(name, module)`. None: all.
        frames_per_row: how many items a layer's leading dimension has for each batch entry, for
            models that fold time or crops into the batch.
        shadow_every: batches from one candidate pass to the next.
        max_snapshots: how many snapshots are kept; the oldest goes first.
        alignment: align the features in front of the classifier head too; see `Coral`.
        journal: a folder, or a `Journal`, to put down what every batch showed and did (no images),
            for `streamadapt replay --journal`. What the disk does not take is dropped and told,
            never waited for.
        class_scores: the model's `[frames, classes]` output is class scores, by which settling can
            be judged (see `SettlingRefused`), and by the guard `[frames, classes, ...]` as well.
            Say False for embeddings and regressions.
        alarms: how drift is watched for, by default with one false alarm a camera and month; None:
            not at all.
        guard: keeps out frames that are no picture, and takes back what hurts; None: nothing does.
        domains: so many worlds of each stream are remembered, with an estimator that settles, as
            the default does; 0: none.
        refold_every: of a model from `sa.fold`, with one stream: after so many commits statistics
            that changed are folded into its weights, by default about every eighth batch. A change
            of domain, and whatever you do yourself, takes effect at once.
        adapt_every: every so many batches adapt; those in between run on the statistics at hand,
            and single frames are not corrected in them. A stream that settles, or had an alarm,
            adapts with every batch. Frames in between count as time that passed.
        between: what answers batches in between, where they are as it was built for: one of
            `sa.between`, or a function from a plain model, folded, to what answers like it. It is
            built in the background, again when statistics have moved; until then, and with grad
            enabled, the adapted model answers.
        store: a folder, or a `FileStore`, to keep every stream's statistics in: now and then, when
            it loses its row, and at the end. A stream that comes back goes on with them.
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
        profile: SourceProfile | str | os.PathLike[str] | None = None,
        timing: Timing = "lagged",
        mode: Mode = "adapt",
        max_streams: int = 1,
        when_full: WhenFull = "error",
        on_event: EventHandler | None = None,
        backend: Backend = "auto",
        layers: LayerFilter | None = None,
        frames_per_row: int = 1,
        shadow_every: int = 10,
        max_snapshots: int = 16,
        alignment: Coral | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
        class_scores: bool = True,
        alarms: Alarms | None = _ALARMS,
        guard: Guard | None = None,
        domains: int = 0,
        refold_every: int | None = None,
        adapt_every: int = 1,
        between: Builder | Build | None = None,
        store: FileStore | str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        estimator = Restarting() if estimator is None else estimator
        check_types(model, estimator)
        check_choice("timing", timing, ("lagged", "synchronous"))
        check_choice("mode", mode, ("adapt", "shadow"))
        check_choice("when_full", when_full, ("error", "evict"))
        check_choice("backend", backend, ("auto", "compiled", "triton", "hooks"))
        check_at_least_one(
            max_streams=max_streams,
            frames_per_row=frames_per_row,
            shadow_every=shadow_every,
            max_snapshots=max_snapshots,
            refold_every=1 if refold_every is None else refold_every,
            adapt_every=adapt_every,
        )
        if refold_every is None:
            refold_every = max(_REFOLD_BATCHES // adapt_every, 1)
        if between is not None:
            between = builder_of(between)
            check_between(
                adapt_every=adapt_every,
                max_streams=max_streams,
                timing=timing,
                aligned=alignment is not None,
            )
        if timing not in estimator.timings:
            raise ConfigurationError(
                f'{type(estimator).__name__} is a synchronous method: give timing="synchronous". '
                "One batch late it would be something else."
            )
        if isinstance(journal, str | os.PathLike):
            journal = Journal(os.fspath(journal))
        if isinstance(store, str | os.PathLike):
            store = FileStore(store)
        inventory = take_inventory(model, layers=layers)
        inventory.require_adaptable()
        for layer in inventory.layers:
            layer.require_inference()
        kernels, problem = choose_kernels(backend, inventory)
        if profile is not None:
            if not isinstance(profile, SourceProfile):
                profile = SourceProfile.load(profile)
            profile.require_fingerprint(fingerprint_of(inventory))
            estimator = estimator.calibrated(profile)
        self._runtime = Runtime(
            model,
            inventory,
            estimator=estimator,
            timing=timing,
            mode=mode,
            max_streams=max_streams,
            when_full=when_full,
            frames_per_row=frames_per_row,
            max_snapshots=max_snapshots,
            on_event=on_event,
            alignment=alignment,
            journal=journal,
            profile=profile,
            class_scores=class_scores,
            alarms=alarms,
            guard=guard,
            domains=domains,
            kernels=kernels,
            packs=backend != "hooks",
            refold_every=refold_every,
            adapt_every=adapt_every,
            between=between,
            store=store,
            clock=clock,
        )
        if problem is not None:
            self._runtime.outbox.post(ev.KernelsUnavailable(step=0, reason=problem))
        self._stepper = Stepper(self._runtime, shadow_every=shadow_every, clock=clock)

    def __call__(
        self,
        frames: Any,
        *args: Any,
        streams: Hashable | Sequence[Hashable] | None = None,
        pts_seconds: float | Sequence[float] | None = None,
        valid: int | None = None,
        ids: Sequence[Hashable | None] | None = None,
        rejected: Sequence[ev.Rejection | None] | None = None,
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
            valid: the first so many frames of the batch are real; those behind them fill it up to
                a fixed size. They are answered, and nothing is learned from them. `streams` and
                `pts_seconds` may leave them out. None: all are real.
            ids: what frames are called when labels come for them, see `reveal`; one entry a frame,
                None for those that will have none.
            rejected: why nothing is to be learned from a frame, one of `events.Rejection`, such as
                "stale"; one entry a frame, None for those that may be learned from. All are
                answered.
            forward_kwargs: keyword arguments for the model whose names are taken here.
            **kwargs: keyword arguments for the model.

        Returns:
            What the model returns.

        Raises:
            StreamError: `streams`, `pts_seconds`, `valid`, `ids` or `rejected` do not fit. Before
                the forward, with nothing changed; only that a layer cannot be mapped to frames is
                found out inside it.
            ModelStateError: a BatchNorm layer is in training mode, or the processor is unwrapped.
            ConcurrencyError: called from inside a step of this processor.
        """
        kwargs.update(forward_kwargs or {})
        call = Call(frames, args, kwargs)
        return self._stepper.run(
            call,
            streams=streams,
            pts_seconds=pts_seconds,
            valid=valid,
            ids=ids,
            rejected=rejected,
        )

    def capture(self, example: Tensor) -> None:
        """Record a whole step as a CUDA graph, for batches of up to as many frames as `example`.

        Batches of the example's picture size and dtype run as one launch from then on; smaller
        ones are filled up with frames that count nothing. Rollback, freezing, holds and changes of
        streams hold for what is recorded already. Several sizes may be captured; a batch takes the
        smallest that it fits in, and runs as before where it fits in none (`CaptureMissed`).
        Settling passes run as before.

        Args:
            example: `[frames, ...]` on the model's device, in the memory format of later batches;
                its values do not matter, nothing is learned from it.

        Raises:
            ConfigurationError: no CUDA device, feature alignment, shadow mode, or an estimator that
                changes nothing.
            UnsupportedModelError: the model waits for the device inside its forward.
            ModelStateError: a BatchNorm layer is in training mode, or the processor is unwrapped.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.prepare()
            runtime.engine.check_mode()
            if runtime.mode != "adapt" or runtime.never_updates:
                raise ConfigurationError(
                    "Only steps that adapt are captured: set `mode` to 'adapt', and give an "
                    "estimator that changes something."
                )
            with runtime.state_lock:
                runtime.captures.add(runtime.engine, runtime.model, example)
            runtime.post(
                ev.StepCaptured(
                    step=runtime.steps, frames=example.shape[0], shape=tuple(example.shape[1:])
                )
            )

    def run(self, source: Any, **options: Any) -> Iterator[Any]:
        """Results for the frames of a source, as a generator: a `Pipeline` of its own.

        Args:
            source: what `sa.frames.open` opens, or a reader; a list of them for several cameras.
            **options: of `sa.Pipeline`, such as `preprocess`.

        Returns:
            Yields a `pipeline.Result` for each batch, until the sources end.

        Raises:
            ConfigurationError: an argument out of range, or a wrong source.
            SourceError: no source could be used.
        """
        # Not imported: what is built on processors is none of their parts.
        return iter(import_module("streamadapt.pipeline").Pipeline(source, self, **options))

    def flush(self) -> None:
        """Save all streams, and wait for the device, the engine in between, journal and store.

        Delivers the events that are still on their way.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            with runtime.state_lock:
                runtime.readouts.flush()
            if runtime.between is not None:
                runtime.between.wait(runtime.steps)
            if runtime.recorder is not None:
                runtime.recorder.flush()
            if runtime.keeping is not None:
                runtime.keep_all()
                runtime.keeping.flush(runtime.steps)
            runtime.outbox.deliver()

    def unwrap(self) -> nn.Module:
        """Give the model back bit-exactly, and return it; the processor ends here."""
        runtime = self._runtime
        with runtime.step_lock.change():
            if not runtime.closed:
                runtime.reconcile()
                with runtime.state_lock:
                    runtime.readouts.flush()
                    runtime.keep_all()
                    runtime.engine.close()
                    runtime.drift.close()
                    runtime.captures.clear()
                    runtime.closed = True
                if runtime.between is not None:
                    runtime.between.forget()
                runtime.post(ev.Unwrapped(step=runtime.steps))
                if runtime.recorder is not None:
                    runtime.recorder.close(runtime.steps)
                if runtime.keeping is not None:
                    runtime.keeping.close(runtime.steps)
                runtime.outbox.deliver()
        return runtime.model

    def __enter__(self) -> StreamProcessor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unwrap()

    def __repr__(self) -> str:
        runtime = self._runtime
        return (
            f"StreamProcessor({runtime.inventory.model}, layers={len(runtime.engine.layers)}, "
            f"estimator={runtime.engine.estimator!r}, timing={runtime.timing!r}, "
            f"mode={runtime.mode!r}, "
            f"streams={len(runtime.streams.streams)}/{runtime.max_streams})"
        )
