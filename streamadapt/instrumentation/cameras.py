"""What a pipeline's cameras do, for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamadapt.closing import Closing
from streamadapt.errors import ConfigurationError
from streamadapt.frames.reader import State
from streamadapt.instrumentation.tally import Labels
from streamadapt.pipeline import PipelineStatus

_STATES: tuple[State, ...] = get_args(State)
log = logging.getLogger("streamadapt")


class CameraMetrics(Closing, Collector):
    """Frames, drops and outages of cameras, read when somebody scrapes.

    Args:
        statuses: the books of all pipelines, as in `lambda: [pipeline.status]`.
        registry: where to register, such as that of a `PrometheusExporter`.
        namespace: first word of every name.
        max_stream_labels: cameras that get series of their own; the others count as `_other`.

    Raises:
        ConfigurationError: the registry has these names already.
    """

    def __init__(
        self,
        statuses: Callable[[], Iterable[PipelineStatus]],
        registry: CollectorRegistry,
        *,
        namespace: str = "streamadapt",
        max_stream_labels: int = 64,
    ) -> None:
        self._statuses, self._registry, self._namespace = statuses, registry, namespace
        self._labels = Labels(max_stream_labels)
        try:
            registry.register(self)
        except ValueError as error:
            raise ConfigurationError(
                f"The registry has metrics of cameras already ({error}). Give each pipeline a "
                "registry of its own, or one CameraMetrics all of them."
            ) from None

    def close(self) -> None:
        """Give the names back."""
        try:
            self._registry.unregister(self)
        except KeyError:
            log.debug("metrics of cameras were given back before")

    def describe(self) -> Iterator[Metric]:
        """Every family without a value."""
        yield from self._families(())

    def collect(self) -> Iterator[Metric]:
        """All families as they are now. Never raises."""
        try:
            found = tuple(self._statuses())
        except Exception:
            log.exception("cameras could not be read; this scrape goes without them")
            found = ()
        yield from self._families(found)

    def _families(self, statuses: Iterable[PipelineStatus]) -> Iterator[Metric]:
        def name(text: str) -> str:
            return f"{self._namespace}_{text}"

        frames = CounterMetricFamily(
            name("camera_frames"),
            "Frames taken from a camera: delivered to the model, or why they were dropped.",
            labels=("stream", "outcome"),
        )
        outages = CounterMetricFamily(
            name("camera_outages"), "Times that a camera went away.", labels=("stream",)
        )
        waiting = GaugeMetricFamily(
            name("camera_waiting_frames"), "Frames that wait for the model.", labels=("stream",)
        )
        state = GaugeMetricFamily(
            name("camera_state"),
            "1 for what a camera is doing, 0 for what it is not.",
            labels=("stream", "state"),
        )
        killed = GaugeMetricFamily(name("killed"), "1 while the kill switch is on.")
        errors = CounterMetricFamily(
            name("sink_errors"), "Writes of results that failed.", labels=("sink",)
        )
        totals: dict[tuple[str, str], float] = {}
        states: dict[tuple[str, str], float] = {}
        gone: dict[str, float] = {}
        waits: dict[str, float] = {}
        failed: dict[str, float] = {}
        statuses = tuple(statuses)
        for status in statuses:
            for camera in status.cameras:
                stream = self._labels.of(camera.stream_id)
                spoiled = status.unprepared.get(camera.stream_id, 0)
                counts = {
                    "delivered": camera.counts.delivered - spoiled,
                    "unprepared": spoiled,
                    **camera.counts.drops,
                }
                for outcome, count in counts.items():
                    totals[stream, outcome] = totals.get((stream, outcome), 0) + count
                for one in _STATES:
                    states[stream, one] = max(
                        states.get((stream, one), 0.0), float(one == camera.state)
                    )
                gone[stream] = gone.get(stream, 0) + camera.outages
                waits[stream] = waits.get(stream, 0) + camera.counts.waiting
            for sink, count in status.sink_errors.items():
                failed[sink] = failed.get(sink, 0) + count
        for labels, value in totals.items():
            frames.add_metric(labels, value)
        for labels, value in states.items():
            state.add_metric(labels, value)
        for stream, value in gone.items():
            outages.add_metric((stream,), value)
        for stream, value in waits.items():
            waiting.add_metric((stream,), value)
        for sink, value in failed.items():
            errors.add_metric((sink,), value)
        if statuses:
            killed.add_metric((), float(any(one.killed for one in statuses)))
        yield from (frames, outages, waiting, state, killed, errors)
