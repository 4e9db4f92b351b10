"""What a Prometheus server gets to see, mostly through a real scrape over HTTP."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from torch import nn

import streamadapt as sa
from streamadapt import events as ev
from streamadapt.errors import ConfigurationError, ModelStateError
from streamadapt.instrumentation import PrometheusExporter

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    ).eval()


def frames(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + 1


@pytest.fixture
def processor() -> Iterator[sa.StreamProcessor]:
    with sa.StreamProcessor(network(), estimator=sa.estimators.EMA(), max_streams=8) as wrapped:
        yield wrapped


def fetch(exporter: PrometheusExporter, accept: str = "text/plain") -> str:
    """What a server would be answered: over HTTP where the exporter serves, which costs time."""
    if exporter.url is None:
        return generate_latest(exporter.registry).decode()
    request = urllib.request.Request(exporter.url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def scrape(exporter: PrometheusExporter) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(fetch(exporter))
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"streamadapt_{name}", frozenset(labels.items())))


def series(samples: Samples, name: str) -> set[str]:
    """Values of the label `stream` that a metric has."""
    return {dict(labels)["stream"] for found, labels in samples if found == f"streamadapt_{name}"}


def test_a_scrape_tells_what_happened(processor: sa.StreamProcessor) -> None:
    with PrometheusExporter(processor, port=0) as exporter:
        processor(frames(4), streams=["dock", "dock", "dock", "gate"])
        spoilt = frames(3, seed=1)
        spoilt[0] = torch.nan
        processor(spoilt, streams="dock")
        processor.snapshot("good")
        processor.rollback("good", reason="guard")
        processor(frames(0))
        samples = scrape(exporter)

    assert value(samples, "batches_total") == 3
    assert value(samples, "frames_total", stream="dock") == 6
    assert value(samples, "frames_total", stream="gate") == 1
    assert value(samples, "updates_total", outcome="updated") == 2
    assert value(samples, "updates_total", outcome="empty") == 1
    assert value(samples, "updates_total", outcome="failed") == 0
    assert value(samples, "frames_rejected_total", stream="dock", reason="nonfinite") == 1
    assert value(samples, "rollbacks_total", reason="guard") == 1
    assert value(samples, "streams") == 2
    assert value(samples, "frozen") == 0
    assert value(samples, "calibrated") == 0
    assert value(samples, "healthy") == 1
    assert value(samples, "inference_duration_seconds_count", timing="wall") == 3
    assert value(samples, "update_duration_seconds_count", timing="wall") == 2
    for stream in ("dock", "gate"):
        distance = value(samples, "source_distance", stream=stream)
        age = value(samples, "last_update_age_seconds", stream=stream)
        assert distance is not None and distance > 0
        assert age is not None and 0 <= age < 60


def show(processor: sa.StreamProcessor, stream: str, *, count: int, after: float = 0.0) -> None:
    """Frames of another world, at 25 a second, in batches of 8; `after` what came before."""
    for start in range(0, count, 8):
        stamps = [after + (start + index) / 25 for index in range(8)]
        processor(frames(8, seed=start) * 3, streams=stream, pts_seconds=stamps)


def phase_of(samples: Samples, stream: str) -> set[str | None]:
    """Phases that are at 1; the others have to be there at 0."""
    found = {
        phase: value(samples, "phase", stream=stream, phase=phase)
        for phase in ("settling", "following", "resting")
    }
    assert set(found.values()) <= {0.0, 1.0}
    return {phase for phase, is_it in found.items() if is_it}


def test_a_scrape_tells_the_phases_and_the_settling_passes() -> None:
    with (
        sa.StreamProcessor(network(), max_streams=4) as processor,
        PrometheusExporter(processor, port=0) as exporter,
    ):
        assert value(scrape(exporter), "settling_failures_total") == 0
        assert not series(scrape(exporter), "phase")
        show(processor, "dock", count=8)
        first = scrape(exporter)
        show(processor, "dock", count=120, after=8 / 25)
        show(processor, "gate", count=16)
        settled = scrape(exporter)
        assert {"dock": processor.phase("dock"), "gate": processor.phase("gate")} == {
            "dock": "following",
            "gate": "settling",
        }
        processor.rollback("source", stream="dock")
        assert processor.phase("dock") is None
        back = scrape(exporter)
        processor.drop_stream("gate")
        dropped = scrape(exporter)

    assert phase_of(first, "dock") == {"settling"}
    assert value(first, "settling_passes_total", stream="dock") == 1
    assert phase_of(settled, "dock") == {"following"}
    assert phase_of(settled, "gate") == {"settling"}
    assert value(settled, "settling_passes_total", stream="dock") == 8  # 64 frames, 2.56 s
    assert value(settled, "settling_passes_total", stream="gate") == 2
    assert value(settled, "events_total", event="SettlingPassed") == 10
    assert value(settled, "events_total", event="PhaseChanged") == 3
    assert value(settled, "batches_total") == 1 + 15 + 2
    assert series(back, "phase") == {"gate"}
    assert series(dropped, "phase") == set()
    assert value(dropped, "settling_passes_total", stream="gate") == 2


def test_a_settling_pass_that_fails_is_counted() -> None:
    class Once(nn.Sequential):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls % 2 == 0:
                raise RuntimeError("not twice")
            output: torch.Tensor = super().forward(x)
            return output

    with (
        sa.StreamProcessor(Once(*network()).eval()) as processor,
        PrometheusExporter(processor, port=None) as exporter,
    ):
        show(processor, "dock", count=24)
        samples = scrape(exporter)
        assert processor.status.reasons == ("the settling pass failed: RuntimeError: not twice",)
    assert value(samples, "settling_failures_total") == 3
    assert value(samples, "settling_passes_total", stream="dock") is None
    assert value(samples, "events_total", event="SettlingFailed") == 3
    assert value(samples, "updates_total", outcome="updated") == 3
    assert phase_of(samples, "dock") == {"settling"}
    assert value(samples, "healthy") == 0


def test_an_estimator_without_phases_has_none_to_show(processor: sa.StreamProcessor) -> None:
    with PrometheusExporter(processor, port=None) as exporter:
        show(processor, "dock", count=80)
        samples = scrape(exporter)
    assert processor.phase("dock") is None
    assert not series(samples, "phase") and not series(samples, "settling_passes_total")
    assert value(samples, "settling_failures_total") == 0


def test_phases_of_streams_beyond_the_bound_are_shown_together() -> None:
    with (
        sa.StreamProcessor(network(), max_streams=4) as processor,
        PrometheusExporter(processor, port=None, max_stream_labels=1) as exporter,
    ):
        for stream, count in (("dock", 8), ("gate", 80), ("yard", 8)):
            show(processor, stream, count=count)
        samples = scrape(exporter)
    assert (
        series(samples, "phase") == series(samples, "settling_passes_total") == {"dock", "_other"}
    )
    assert phase_of(samples, "_other") == {"settling", "following"}
    assert value(samples, "settling_passes_total", stream="_other") == 8 + 1


def test_every_kind_of_event_has_a_counter_before_it_happens(
    processor: sa.StreamProcessor,
) -> None:
    kinds = {kind.__name__ for kind in ev.Event.__subclasses__()}
    with PrometheusExporter(processor, port=None) as exporter:
        before = scrape(exporter)
        processor.freeze()
        after = scrape(exporter)

    assert {"ForwardFailed", "UpdateFailed", "RolledBack"} <= kinds
    assert all(value(before, "events_total", event=kind) == 0 for kind in kinds)
    assert value(after, "events_total", event="AdaptationFrozen") == 1
    assert value(after, "frozen") == 1


def test_names_units_and_help_follow_the_conventions(processor: sa.StreamProcessor) -> None:
    with PrometheusExporter(processor, port=0) as exporter:
        processor(frames(2))
        processor.rollback("source")
        families = list(text_string_to_metric_families(fetch(exporter)))
        strict = list(parse_openmetrics(fetch(exporter, "application/openmetrics-text")))

    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    for family in families:
        assert family.name.startswith("streamadapt_")
        assert family.documentation.endswith(".") and len(family.documentation) < 100
        assert not any(unit in family.name for unit in ("_ms", "millis", "_us", "percent"))
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        else:
            assert not family.name.endswith("_total")
        if "duration" in family.name or "age" in family.name.split("_"):
            assert family.name.endswith("_seconds")
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}
    assert {f.unit for f in strict if f.name.endswith("_seconds")} == {"seconds"}


def test_duration_buckets_reach_from_half_a_millisecond_to_ten_seconds(
    processor: sa.StreamProcessor,
) -> None:
    with PrometheusExporter(processor, port=None) as exporter:
        processor(frames(2))
        found = [
            (float(sample.labels["le"]), sample.value)
            for family in text_string_to_metric_families(fetch(exporter))
            for sample in family.samples
            if sample.name == "streamadapt_inference_duration_seconds_bucket"
        ]
    bounds = [bound for bound, _ in found]
    counts = [count for _, count in found]
    assert (bounds[0], bounds[-2], bounds[-1]) == (0.0005, 10.0, float("inf"))
    assert counts == sorted(counts) and counts[-1] == 1


def test_streams_beyond_the_bound_are_counted_together() -> None:
    with (
        sa.StreamProcessor(network(), estimator=sa.estimators.EMA(), max_streams=8) as processor,
        PrometheusExporter(processor, port=None, max_stream_labels=2) as exporter,
    ):
        for number in range(5):
            processor(frames(number + 1, seed=number), streams=f"camera-{number}")
        samples = scrape(exporter)
        beyond = [processor.drift(f"camera-{number}").overall for number in (2, 3, 4)]
    kept = {"camera-0", "camera-1", "_other"}
    for name in ("frames_total", "source_distance", "last_update_age_seconds"):
        assert series(samples, name) == kept
    assert value(samples, "frames_total", stream="_other") == 3 + 4 + 5
    assert value(samples, "source_distance", stream="_other") == max(beyond)


def test_rollback_reasons_beyond_the_bound_are_counted_together(
    processor: sa.StreamProcessor,
) -> None:
    with PrometheusExporter(processor, port=None) as exporter:
        for number in range(20):
            processor.rollback("source", reason=f"reason {number}")
        processor.rollback("source", reason="reason 3")
        samples = scrape(exporter)
    reasons = [labels for name, labels in samples if name == "streamadapt_rollbacks_total"]
    assert len(reasons) == 17
    assert value(samples, "rollbacks_total", reason="reason 3") == 2
    assert value(samples, "rollbacks_total", reason="_other") == 4


def test_a_dropped_stream_leaves_its_counters_and_takes_its_gauges(
    processor: sa.StreamProcessor,
) -> None:
    with PrometheusExporter(processor, port=None) as exporter:
        processor(frames(2), streams=["dock", "gate"])
        processor.drop_stream("dock")
        samples = scrape(exporter)
    assert series(samples, "source_distance") == {"gate"}
    assert series(samples, "last_update_age_seconds") == {"gate"}
    assert value(samples, "frames_total", stream="dock") == 1


def test_an_unwrapped_processor_has_no_gauges_and_is_not_healthy(
    processor: sa.StreamProcessor,
) -> None:
    with PrometheusExporter(processor, port=0) as exporter:
        processor(frames(2))
        processor.unwrap()
        samples = scrape(exporter)
    assert value(samples, "healthy") == 0
    assert value(samples, "batches_total") == 1
    assert value(samples, "events_total", event="Unwrapped") == 1
    assert not series(samples, "source_distance")
    assert value(samples, "streams") is None and value(samples, "frozen") is None


def test_a_gauge_that_fails_does_not_take_the_scrape_with_it(
    processor: sa.StreamProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stream: object = None) -> None:
        raise RuntimeError("the device is lost")

    with PrometheusExporter(processor, port=0) as exporter:
        processor(frames(2))
        monkeypatch.setattr(processor, "drift", fail)
        samples = scrape(exporter)
    assert value(samples, "batches_total") == 1
    assert value(samples, "healthy") == 0


@pytest.mark.parametrize("name", ['with "quotes" and \\', "two\nlines", "caf\udce9", "カメラ"])
def test_any_stream_name_can_be_scraped(processor: sa.StreamProcessor, name: str) -> None:
    with PrometheusExporter(processor, port=None) as exporter:
        processor(frames(1), streams=name)
        samples = scrape(exporter)
    assert len(series(samples, "frames_total")) == 1
    assert value(samples, "streams") == 1


def test_info_says_what_runs(processor: sa.StreamProcessor) -> None:
    with PrometheusExporter(processor, port=None) as exporter:
        processor.mode = "shadow"
        samples = scrape(exporter)
    (info,) = [dict(labels) for name, labels in samples if name == "streamadapt_info"]
    assert info == {
        "version": sa.__version__,
        "model": "Sequential",
        "estimator": "EMA(half_life_frames=360, rule='mixture')",
        "timing": "lagged",
        "mode": "shadow",
    }


def test_close_gives_port_names_and_events_back(processor: sa.StreamProcessor) -> None:
    registry = CollectorRegistry()
    exporter = PrometheusExporter(processor, port=0, registry=registry)
    port = exporter.port
    assert port
    exporter.close()
    exporter.close()
    assert exporter.port is None and exporter.url is None
    assert list(registry.collect()) == []
    with PrometheusExporter(processor, port=port, registry=registry) as again:
        assert again.port == port
        processor(frames(1))
    assert exporter._tally.counts()["batches"] == {(): 0}


def test_without_a_port_nothing_is_served(processor: sa.StreamProcessor) -> None:
    with PrometheusExporter(processor, port=None) as exporter:
        processor(frames(1))
        assert exporter.url is None
        assert exporter.registry.get_sample_value("streamadapt_batches_total") == 1


def test_a_port_that_is_taken_is_an_error_that_says_so(processor: sa.StreamProcessor) -> None:
    registry = CollectorRegistry()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            PrometheusExporter(processor, port=port, registry=registry)
    assert str(caught.value) == (
        f"Cannot serve metrics on 127.0.0.1:{port}: Address already in use. Choose another "
        "`port`, 0 for any free one, or None to serve nothing."
    )
    assert list(registry.collect()) == []


def test_two_processors_have_registries_of_their_own(processor: sa.StreamProcessor) -> None:
    with (
        sa.StreamProcessor(network()) as second,
        PrometheusExporter(processor, port=None) as one,
        PrometheusExporter(second, port=None) as other,
    ):
        processor(frames(1))
        assert value(scrape(one), "batches_total") == 1
        assert value(scrape(other), "batches_total") == 0


def test_one_registry_takes_one_processor_a_namespace(processor: sa.StreamProcessor) -> None:
    registry = CollectorRegistry()
    with (
        sa.StreamProcessor(network()) as second,
        PrometheusExporter(processor, port=None, registry=registry),
    ):
        with pytest.raises(ConfigurationError, match="`namespace` of its own"):
            PrometheusExporter(second, port=None, registry=registry)
        with PrometheusExporter(second, port=None, registry=registry, namespace="gate"):
            second(frames(1))
            assert registry.get_sample_value("gate_batches_total") == 1
            assert registry.get_sample_value("streamadapt_batches_total") == 0


@pytest.mark.parametrize(
    "wrong", [{"port": 65536}, {"port": -1}, {"namespace": "1x"}, {"max_stream_labels": -1}]
)
def test_arguments_out_of_range_are_refused(
    processor: sa.StreamProcessor, wrong: dict[str, int]
) -> None:
    with pytest.raises(ConfigurationError, match=f"`{next(iter(wrong))}` must be"):
        PrometheusExporter(processor, **{"port": None, **wrong})


def test_an_unwrapped_processor_is_refused() -> None:
    processor = sa.StreamProcessor(network())
    processor.unwrap()
    with pytest.raises(ModelStateError, match="unwrapped"):
        PrometheusExporter(processor, port=None)


def test_the_package_comes_without_prometheus_until_it_is_asked_for() -> None:
    code = (
        "import sys, streamadapt, streamadapt.instrumentation as i; i.log_events();"
        "assert 'prometheus_client' not in sys.modules;"
        "i.PrometheusExporter; assert 'prometheus_client' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scrapes_beside_a_busy_processor_lose_nothing(caplog: pytest.LogCaptureFixture) -> None:
    processor = sa.StreamProcessor(network(), max_streams=2)
    with PrometheusExporter(processor, port=None) as exporter:
        stop, texts = threading.Event(), []

        def keep_scraping() -> None:
            while not stop.is_set():
                texts.append(generate_latest(exporter.registry))

        reader = threading.Thread(target=keep_scraping)
        reader.start()
        for number in range(40):
            processor(frames(1), streams=f"camera-{number}")
            processor.drop_stream(f"camera-{number}")
        processor.unwrap()
        stop.set()
        reader.join()
        assert exporter.registry.get_sample_value("streamadapt_batches_total") == 40
    assert texts and not caplog.records
