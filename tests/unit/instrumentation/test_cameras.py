"""Metrics of cameras as Prometheus reads them."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

import streamadapt as sa
from streamadapt.errors import ConfigurationError
from streamadapt.instrumentation import CameraMetrics, PrometheusExporter
from streamadapt.pipeline import CallbackSink, Pipeline, Preprocess
from tests.models import residual


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def fail(_: object) -> None:
    raise OSError("disk full")


def test_the_books_of_a_pipeline() -> None:
    with sa.StreamProcessor(residual(), max_streams=2) as processor:
        pipeline = Pipeline(
            [
                sa.frames.open(pictures(5), stream_id="dock-1"),
                sa.frames.open(pictures(3), stream_id="rtsp://u:pa55@h/x"),
            ],
            processor,
            [CallbackSink(fail)],
            preprocess=Preprocess(),
        )
        with (
            PrometheusExporter(processor, port=None) as exporter,
            CameraMetrics(lambda: [pipeline.status], exporter.registry),
        ):
            status = pipeline.run()
            read = exporter.registry.get_sample_value
            delivered = {"stream": "dock-1", "outcome": "delivered"}
            assert read("streamadapt_camera_frames_total", delivered) == 5
            assert read("streamadapt_camera_outages_total", {"stream": "dock-1"}) == 0
            assert read("streamadapt_camera_waiting_frames", {"stream": "dock-1"}) == 0
            for state, wanted in (("ended", 1.0), ("running", 0.0), ("failed", 0.0)):
                labels = {"stream": "dock-1", "state": state}
                assert read("streamadapt_camera_state", labels) == wanted
            failed = {"sink": "CallbackSink"}
            count = status.sink_errors["CallbackSink"]
            assert read("streamadapt_sink_errors_total", failed) == count
            assert read("streamadapt_killed") == 0.0
            text = generate_latest(exporter.registry).decode()
            assert "pa55" not in text and "***@h" in text
        assert read("streamadapt_killed") is None  # names were given back


def test_names_that_are_taken_and_books_that_cannot_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()

    def broken() -> list[object]:
        raise RuntimeError("oops")

    with CameraMetrics(broken, registry):  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="already"):
            CameraMetrics(lambda: [], registry)
        assert b"streamadapt_camera_state" in generate_latest(registry)
        assert "goes without them" in caplog.text


def test_many_cameras_are_counted_together() -> None:
    registry = CollectorRegistry()
    with sa.StreamProcessor(residual(), max_streams=4) as processor:
        sources = [sa.frames.open(pictures(2), stream_id=f"c{k}") for k in range(4)]
        pipeline = Pipeline(sources, processor, preprocess=Preprocess())
        pipeline.run()
        with CameraMetrics(lambda: [pipeline.status], registry, max_stream_labels=1):
            name = "streamadapt_camera_frames_total"
            values = [
                registry.get_sample_value(name, {"stream": one, "outcome": "delivered"})
                for one in ("c0", "_other")
            ]
    assert values == [2, 6]
