"""What can be read of a running processor."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

from torch import nn

from streamadapt import events as ev
from streamadapt.alignment.features import FeatureMoments
from streamadapt.describe import Description, Status, describe_layers
from streamadapt.drift import Drift
from streamadapt.errors import ConfigurationError
from streamadapt.guard.known import Guarded
from streamadapt.moments import Moments
from streamadapt.outbox import EventHandler
from streamadapt.profile import SourceProfile
from streamadapt.runtime import Runtime
from streamadapt.streams import DEFAULT_STREAM, WhenFull


class Readings:
    """Values of a processor's state: copies, of exactly one committed state.

    They may be read while a forward runs.
    """

    _runtime: Runtime

    def statistics(self, stream: Hashable | None = None) -> dict[str, Moments]:
        """A copy of a stream's committed statistics, by layer, `[channels]` float64.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        runtime = self._runtime
        with runtime.state_lock:
            runtime.require_open()
            return runtime.engine.moments(runtime.row(stream))

    def feature_moments(self, stream: Hashable | None = None) -> FeatureMoments:
        """A copy of a stream's moments of the head's input, `[D]` and `[D, D]` float64.

        Raises:
            ConfigurationError: the processor has no alignment.
            StreamError: unknown stream, or several and none named.
        """
        runtime = self._runtime
        with runtime.state_lock:
            runtime.require_open()
            if runtime.engine.head is None:
                raise ConfigurationError(
                    "The processor aligns no features. Give it `alignment=Coral.calibrate(...)`."
                )
            return runtime.engine.feature_moments(runtime.row(stream))

    def drift(self, stream: Hashable | None = None) -> Drift:
        """How far a stream's statistics, and what it shows, lie from the source.

        Waits for the device.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        runtime = self._runtime
        with runtime.state_lock:
            runtime.require_open()
            row = runtime.row(stream)
            values = runtime.engine.distances(row).tolist()
            seen = runtime.drift.scores(row)
            shown = runtime.streams.resolve(stream) if runtime.streams.streams else DEFAULT_STREAM
        names = [layer.name for layer in runtime.engine.layers]
        return Drift(
            stream=shown,
            layers=dict(zip(names, values, strict=True)),
            overall=sum(values) / len(values),
            observed=dict(zip(names, seen.observed, strict=False)),
            observed_deviations=dict(zip(names, seen.observed_deviations, strict=False)),
            scores=dict(seen.scores),
            deviations=dict(seen.deviations),
            calibrated=seen.calibrated,
        )

    def drift_score(self, stream: Hashable | None = None) -> float | None:
        """How far what a stream shows lies from the source, as it was looked at last.

        `drift().scores["model"]` without waiting for the device; None before the first look.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        runtime = self._runtime
        with runtime.state_lock:
            found = runtime.drift.score(runtime.row(stream))
        return None if found is None or math.isnan(found) else found

    def phase(self, stream: Hashable | None = None) -> ev.Phase | None:
        """What the estimator is doing with a stream, as `PhaseChanged` told it last.

        None before the stream's first step, and for estimators without phases. On CUDA it is known
        a few steps late.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        runtime = self._runtime
        with runtime.state_lock:
            return runtime.phases.of(runtime.row(stream))

    def guarded(self, stream: Hashable | None = None) -> Guarded | None:
        """What the guard knows of a stream; None without a guard.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        runtime = self._runtime
        with runtime.state_lock:
            return runtime.guard.of(runtime.row(stream))

    def domains(self, stream: Hashable | None = None) -> tuple[str, ...]:
        """Names of the domains that a stream knows.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        runtime = self._runtime
        with runtime.state_lock:
            return runtime.domains.names(runtime.row(stream))

    def adapted_model(self, stream: Hashable | None = None) -> nn.Module:
        """A plain copy of the model with a stream's statistics baked in; compact, without taps.

        It does not correct single frames, see `estimators.FrameCorrection`. With an alignment, the
        stream's map is part of the head's weight and bias.

        Raises:
            StreamError: unknown stream, or several and none named.
        """
        runtime = self._runtime
        with runtime.step_lock.change():
            runtime.prepare()
            with runtime.state_lock:
                return runtime.engine.adapted_copy(runtime.model, runtime.row(stream))

    def update_age_seconds(self, stream: Hashable | None = None) -> float | None:
        """Seconds since a stream's statistics were committed; None if they never were."""
        runtime = self._runtime
        with runtime.state_lock:
            return runtime.ledger.age_seconds(runtime.row(stream))

    @property
    def streams(self) -> tuple[Hashable, ...]:
        """Streams that have a row, the one longest without frames first."""
        runtime = self._runtime
        with runtime.state_lock:
            return runtime.streams.streams

    @property
    def frozen(self) -> bool:
        """Whether updates are stopped."""
        runtime = self._runtime
        return runtime.frozen

    @property
    def event_counts(self) -> dict[str, int]:
        """How many events of each class there were."""
        runtime = self._runtime
        return dict(runtime.outbox.counts)

    @property
    def handler_errors(self) -> int:
        """How many calls of event handlers raised; each was logged."""
        runtime = self._runtime
        return runtime.outbox.handler_errors

    @property
    def profile(self) -> SourceProfile | None:
        """What it was given; None where it is not calibrated, or no longer."""
        return self._runtime.profile

    @property
    def calibrated(self) -> bool:
        """Whether it knows the source's variability from a profile."""
        return self._runtime.profile is not None

    @property
    def closed(self) -> bool:
        """Whether the model has been unwrapped."""
        runtime = self._runtime
        return runtime.closed

    @property
    def status(self) -> Status:
        """Health of the runtime: what keeps it from updating, if anything does."""
        runtime = self._runtime
        with runtime.state_lock:
            ages = [runtime.ledger.age_seconds(row) for row in runtime.ledger.last_update]
            reasons = (*runtime.ledger.trouble.values(), *runtime.guard.reasons)
        if runtime.closed:
            reasons = (*reasons, "unwrapped")
        known = [age for age in ages if age is not None]
        return Status(not reasons, reasons, runtime.steps, min(known, default=None))

    def describe(self) -> Description:
        """Configuration and state, as a value that prints well."""
        runtime = self._runtime
        engine = runtime.engine
        return Description(
            model=runtime.inventory.model,
            device=str(engine.device),
            estimator=repr(engine.estimator),
            timing=runtime.timing,
            mode=runtime.mode,
            backend=engine.backend,
            statistics=engine.binding.manner,
            alignment=None if engine.head is None else repr(engine.head.source),
            alarms=None if runtime.drift.alarms is None else repr(runtime.drift.alarms),
            guard=None if runtime.guard.guard is None else repr(runtime.guard.guard),
            domains=runtime.domains.capacity,
            adapt_every=runtime.duty.every,
            between=None if runtime.between is None else repr(runtime.between.builder),
            frozen=runtime.frozen,
            max_streams=runtime.max_streams,
            streams=self.streams,
            snapshots=runtime.snapshots.names,
            bytes_per_stream=engine.bank.bytes_per_row,
            layers=describe_layers(engine.layers, taps=engine.manners()),
            notes=runtime.inventory.notes,
        )

    def subscribe(self, handler: EventHandler) -> Callable[[], None]:
        """Call `handler` with every event from now on; returns a function that ends it."""
        runtime = self._runtime
        return runtime.outbox.subscribe(handler)

    @property
    def model(self) -> nn.Module:
        """The wrapped model."""
        return self._runtime.model

    @property
    def when_full(self) -> WhenFull:
        """What an unknown stream meets when all rows are taken."""
        return self._runtime.streams.when_full

    @property
    def max_streams(self) -> int:
        """How many streams it can hold."""
        return self._runtime.max_streams
