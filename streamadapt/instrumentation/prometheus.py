"""A processor's counters, durations and gauges for Prometheus."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from streamadapt.closing import Closing
from streamadapt.drift import Drift
from streamadapt.errors import ConfigurationError, ModelStateError, StreamError
from streamadapt.events import Phase
from streamadapt.guard.known import Guarded
from streamadapt.guard.ladder import GuardState
from streamadapt.instrumentation.tally import COUNTERS, HISTOGRAMS, Tally
from streamadapt.processor import StreamProcessor

_NAMESPACE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_HELP = {
    "batches": "Batches that went through the model.",
    "frames": "Frames that went through the model.",
    "updates": "Batches by what they did to the statistics.",
    "rollbacks": "Returns to an earlier state.",
    "frames_rejected": "Frames with no weight in the update; their outputs were still returned.",
    "settling_passes": "Batches that went through the model once more, to measure a new world.",
    "settling_failures": "Such passes in which the model raised; the outputs were still returned.",
    "drift_alarms": "Alarms that a stream's world is not what it was, by what noticed.",
    "fleet_drift_alarms": "Times that many streams had such alarms at once.",
    "guard_actions": "What the guard did: hold, release, shrink, rollback, pin, unpin.",
    "compared_frames": "Frames that were answered on the source's statistics too, to compare.",
    "domain_recalls": "Times that a stream was back in a world that it knew.",
    "events": "Events by class.",
    "handler_errors": "Calls of event handlers that raised; each was logged.",
    "inference_duration_seconds": "Time of a batch in the model, moments included.",
    "update_duration_seconds": "Time of a batch's update after the model, where one was tried.",
    "source_distance": "Distance of the statistics from the source, mean over layers.",
    "drift_score": "Distance of what was seen last from the source, mean over layers of a depth.",
    "drift_deviation": "The same in standard deviations from the stream's own reference.",
    "drift_calibrated": "1 where that reference is long enough for the stated run time.",
    "last_update_age_seconds": "Time since the statistics were last updated.",
    "domains": "Worlds that the stream knows.",
    "guard_state": "1 for what the guard is doing with the stream, 0 for what it is not.",
    "estimated_gain": "Estimated share of right answers won by adapting.",
    "shadow_agreement": "Share of equal answers, adapted and source, when last compared.",
    "output_entropy": "Mean entropy of the latest answers, nats.",
    "output_classes": "Effective number of classes in the latest answers.",
    "output_flips": "Share of neighbouring frames among them that are answered differently.",
    "phase": "1 for what the estimator is doing with the stream, 0 for what it is not.",
    "streams": "Streams that have statistics of their own.",
    "frozen": "1 while updates are stopped.",
    "calibrated": "1 where the source's variability is known from a profile.",
    "healthy": "1 while nothing keeps the runtime from updating; says nothing of the answers.",
}
_BY_STREAM: dict[str, tuple[str, ...]] = {
    "source_distance": ("stream",),
    "drift_score": ("stream", "depth"),
    "drift_deviation": ("stream", "depth"),
    "drift_calibrated": ("stream",),
    "last_update_age_seconds": ("stream",),
    "domains": ("stream",),
    "guard_state": ("stream", "state"),
    "estimated_gain": ("stream",),
    "shadow_agreement": ("stream",),
    "output_entropy": ("stream",),
    "output_classes": ("stream",),
    "output_flips": ("stream",),
    "phase": ("stream", "phase"),
}
"""Names of the gauges that each stream has, each with the names of its labels."""
log = logging.getLogger("streamadapt")


@dataclass(frozen=True)
class _Readings:
    """Values of the gauges at one time; those of a processor that is gone when empty."""

    by_stream: Mapping[str, Mapping[tuple[str, ...], float]] = field(
        default_factory=lambda: {name: {} for name in _BY_STREAM}
    )
    plain: Mapping[str, float | None] = field(
        default_factory=lambda: {
            "streams": None,
            "frozen": None,
            "calibrated": None,
            "healthy": 0.0,
        }
    )


class PrometheusExporter(Closing, Collector):
    """Serves a processor's metrics, and stays out of its way.

    Counters start when the exporter is made. Gauges are read from the processor when somebody
    scrapes; an unwrapped processor has none any more, and is not healthy. The number of series is
    bounded: streams and rollback reasons beyond the bound are counted together as `_other`, where
    a gauge is the largest of them.

    Args:
        processor: whose metrics.
        port: where to serve `/metrics`; 0 takes a free one, None serves nothing (for a registry
            that is served elsewhere).
        addr: address to listen on; only this machine by default.
        registry: where to register; one of its own by default.
        namespace: first word of every name.
        max_stream_labels: how many streams get series of their own, first come, first served.

    Raises:
        ConfigurationError: the port is taken or the address is not this machine's; the registry
            has these names already; an argument out of range.
        ModelStateError: the processor is unwrapped.

    Example:
        >>> import torch, streamadapt as sa
        >>> from streamadapt.instrumentation import PrometheusExporter
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).eval()
        >>> processor = sa.StreamProcessor(model)
        >>> with PrometheusExporter(processor, port=None) as exporter:
        ...     _ = processor(torch.ones(4, 3, 8, 8))
        ...     exporter.registry.get_sample_value(
        ...         "streamadapt_frames_total", {"stream": "default"}
        ...     )
        4
    """

    def __init__(
        self,
        processor: StreamProcessor,
        *,
        port: int | None = 9400,
        addr: str = "127.0.0.1",
        registry: CollectorRegistry | None = None,
        namespace: str = "streamadapt",
        max_stream_labels: int = 64,
    ) -> None:
        if port is not None and not 0 <= port <= 65535:
            raise ConfigurationError(f"`port` must be from 0 to 65535 or None, got {port}.")
        if not _NAMESPACE.fullmatch(namespace):
            raise ConfigurationError(
                f"`namespace` must be letters, digits and underscores, got {namespace!r}."
            )
        if max_stream_labels < 0:
            raise ConfigurationError(
                f"`max_stream_labels` must be at least 0, got {max_stream_labels}."
            )
        with suppress(StreamError):  # several streams: it answers, which is all that is asked
            processor.drift()
        self.registry = CollectorRegistry() if registry is None else registry
        self.addr = addr
        self._processor = processor
        self._namespace = namespace
        self._tally = Tally(max_streams=max_stream_labels)
        self._info = self._constants()
        self._register()
        self._server, self._thread = None, None
        if port is not None:
            try:
                self._server, self._thread = start_http_server(port, addr, self.registry)
            except OSError as error:
                self.registry.unregister(self)
                raise ConfigurationError(
                    f"Cannot serve metrics on {addr}:{port}: {error.strerror or error}. Choose "
                    "another `port`, 0 for any free one, or None to serve nothing."
                ) from error
        self._unsubscribe: Callable[[], None] | None = processor.subscribe(self._tally.add)

    @property
    def port(self) -> int | None:
        """The port that is served; None where nothing is."""
        return None if self._server is None else int(self._server.server_port)

    @property
    def url(self) -> str | None:
        """Where to scrape; None where nothing is served."""
        host = f"[{self.addr}]" if ":" in self.addr else self.addr
        return None if self._server is None else f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening to the processor, give the names and the port back."""
        if self._unsubscribe is None:
            return
        self._unsubscribe()
        self._unsubscribe = None
        with suppress(KeyError):
            self.registry.unregister(self)
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
        self._server, self._thread = None, None

    # What Prometheus reads ---------------------------------------------------------------------

    def describe(self) -> Iterator[Metric]:
        """Every family without a value, so that a registry sees names that are taken."""
        yield from self._families(
            {name: {} for name in COUNTERS}, {name: {} for name in HISTOGRAMS}
        )
        yield from self._gauges(_Readings())
        yield self._handler_errors()
        yield InfoMetricFamily(self._namespace, "")

    def collect(self) -> Iterator[Metric]:
        """All families as they are now. Never raises."""
        yield from self._families(self._tally.counts(), self._tally.durations())
        try:
            readings = self._read()
            info = {**self._info, "mode": self._processor.mode}
        except Exception:
            # A gauge that fails must not take the counters with it: they say what happened.
            log.exception("gauges could not be read; this scrape goes without them")
            readings, info = _Readings(), dict(self._info)
        yield from self._gauges(readings)
        yield self._handler_errors()
        yield InfoMetricFamily(self._namespace, "What runs, and how.", value=info)

    def _read(self) -> _Readings:
        """The gauges' values; only `healthy`, at zero, once the processor is unwrapped."""
        processor = self._processor
        if processor.closed:
            return _Readings()
        try:
            drifts = self._drifts()
            return _Readings(
                by_stream={
                    "source_distance": self._by_stream(lambda one: {(): drifts[one].overall}),
                    "drift_score": self._by_stream(lambda one: _by_depth(drifts[one].scores)),
                    "drift_deviation": self._by_stream(
                        lambda one: _by_depth(drifts[one].deviations)
                    ),
                    "drift_calibrated": self._by_stream(
                        lambda one: {(): float(drifts[one].calibrated)}
                    ),
                    "last_update_age_seconds": self._by_stream(
                        lambda one: {(): processor.update_age_seconds(one)}
                    ),
                    "domains": self._by_stream(
                        lambda one: {(): float(len(processor.domains(one)))}
                    ),
                    **{
                        name: self._by_stream(self._guarded(read))
                        for name, read in _GUARDED.items()
                    },
                    "phase": self._by_stream(lambda one: _by_phase(processor.phase(one))),
                },
                plain={
                    "streams": float(len(processor.streams)),
                    "frozen": float(processor.frozen),
                    "calibrated": float(processor.calibrated),
                    "healthy": float(processor.status.healthy),
                },
            )
        except ModelStateError:  # unwrapped since the line above
            return _Readings()

    def _guarded(
        self, read: Callable[[Guarded | None], dict[tuple[str, ...], float]]
    ) -> Callable[[Hashable], Mapping[tuple[str, ...], float | None]]:
        return lambda one: read(self._processor.guarded(one))

    def _drifts(self) -> dict[Hashable, Drift]:
        """Of each stream, read once."""
        found: dict[Hashable, Drift] = {}
        for stream in self._processor.streams:
            with suppress(StreamError):  # dropped since the line above
                found[stream] = self._processor.drift(stream)
        return found

    def _by_stream(
        self, read: Callable[[Hashable], Mapping[tuple[str, ...], float | None]]
    ) -> dict[tuple[str, ...], float]:
        """What is read of each stream, by further labels; None is left out."""
        values: dict[tuple[str, ...], float] = {}
        for stream in self._processor.streams:
            try:
                found = read(stream)
            except (StreamError, KeyError):  # dropped or admitted in between
                continue
            for further, value in found.items():
                if value is not None:
                    labels = (self._tally.stream_label(stream), *further)
                    values[labels] = max(value, values.get(labels, value))
        return values

    def _families(
        self,
        counts: Mapping[str, Mapping[tuple[str, ...], int]],
        durations: Mapping[str, Mapping[str, tuple[Sequence[Any], float]]],
    ) -> Iterator[Metric]:
        for name, labels in COUNTERS.items():
            counter = CounterMetricFamily(self._name(name), _HELP[name], labels=labels)
            for values, count in counts[name].items():
                counter.add_metric(values, count)
            yield counter
        for name in HISTOGRAMS:
            histogram = HistogramMetricFamily(
                self._name(name), _HELP[name], labels=("timing",), unit="seconds"
            )
            for timing, (buckets, total) in durations[name].items():
                histogram.add_metric([timing], buckets, total)
            yield histogram

    def _gauges(self, readings: _Readings) -> Iterator[Metric]:
        for name, values in readings.by_stream.items():
            unit = "seconds" if name.endswith("_seconds") else ""
            gauge = GaugeMetricFamily(
                self._name(name), _HELP[name], labels=_BY_STREAM[name], unit=unit
            )
            for labels, value in values.items():
                gauge.add_metric(labels, value)
            yield gauge
        for name, number in readings.plain.items():
            gauge = GaugeMetricFamily(self._name(name), _HELP[name])
            if number is not None:
                gauge.add_metric([], number)
            yield gauge

    def _handler_errors(self) -> Metric:
        return CounterMetricFamily(
            self._name("handler_errors"),
            _HELP["handler_errors"],
            value=self._processor.handler_errors,
        )

    def _name(self, name: str) -> str:
        return f"{self._namespace}_{name}"

    def _constants(self) -> dict[str, str]:
        from streamadapt import __version__  # not known while the package itself is imported

        described = self._processor.describe()
        return {
            "version": __version__,
            "model": described.model,
            "estimator": described.estimator,
            "timing": described.timing,
        }

    def _register(self) -> None:
        try:
            self.registry.register(self)
        except ValueError as error:
            raise ConfigurationError(
                f"This registry has metrics named {self._namespace}_... already, perhaps those of "
                "another processor. Give each processor a `registry` or a `namespace` of its own."
            ) from error

    def __repr__(self) -> str:
        return f"PrometheusExporter({self._processor!r}, url={self.url!r})"


def _value(
    read: Callable[[Guarded], float | None],
) -> Callable[[Guarded | None], dict[tuple[str, ...], float]]:
    """From what is known of a stream to one value; nothing where it is not known."""

    def values(known: Guarded | None) -> dict[tuple[str, ...], float]:
        value = None if known is None else read(known)
        return {} if value is None or math.isnan(value) else {(): value}

    return values


def _by_state(known: Guarded | None) -> dict[tuple[str, ...], float]:
    if known is None:
        return {}
    return {(one,): float(one == known.state) for one in get_args(GuardState)}


_GUARDED: dict[str, Callable[[Guarded | None], dict[tuple[str, ...], float]]] = {
    "guard_state": _by_state,
    "estimated_gain": _value(lambda known: known.gain),
    "shadow_agreement": _value(lambda known: known.agreement),
    "output_entropy": _value(lambda known: None if known.health is None else known.health.entropy),
    "output_classes": _value(lambda known: None if known.health is None else known.health.classes),
    "output_flips": _value(lambda known: None if known.health is None else known.health.flips),
}


def _by_depth(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(depth,): value for depth, value in values.items()}


def _by_phase(phase: Phase | None) -> dict[tuple[str, ...], float]:
    """1 for a stream's phase and 0 for the others; nothing where it has none."""
    return {} if phase is None else {(one,): float(one == phase) for one in get_args(Phase)}
