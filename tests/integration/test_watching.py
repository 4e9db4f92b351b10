"""Drift scores and alarms of a running processor."""

from __future__ import annotations

import shutil
import threading
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.drift import CUSUM, Alarms, AutoRegression, FrameExport
from streamadapt.events import (
    DriftDetected,
    DriftFailed,
    Event,
    FleetDriftDetected,
    FrameExportFailed,
    FramesExported,
    PhaseChanged,
)
from streamadapt.instrumentation import PrometheusExporter

SLOW = sa.estimators.EMA(momentum=1e-6)


def quick(model: AutoRegression, **_: object) -> CUSUM:
    """A detector whose threshold need not be looked for."""
    return CUSUM(model, expected_run_steps=1e6, threshold=40.0)


QUICK = Alarms(detector=quick, background=False, fleet_cameras=2, fleet_window_seconds=1e6)


def one_layer() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 64, 5)).eval()


def three_layers() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (3, 8, 8):
        layers += [nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def frames(seed: int, *, count: int = 4, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator) + offset


def test_scores_are_distances_of_what_was_seen_from_the_source() -> None:
    model = one_layer()
    with sa.StreamProcessor(model, estimator=SLOW) as processor:
        shown = frames(0, offset=0.7)
        processor(shown)
        drift = processor.drift()
    pixels = shown.double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    mean, var = pixels.mean(1), pixels.var(1) + 1e-5
    expected = (mean**2 / np.sqrt(var * (1 + 1e-5)) + 0.5 * np.log(var / (1 + 1e-5)) ** 2).mean()
    assert drift.observed == pytest.approx({"0": expected})
    assert drift.scores == pytest.approx({"early": expected, "model": expected})
    assert drift.overall == pytest.approx(0.0, abs=1e-9)
    assert not drift.calibrated and not drift.deviations


def test_scores_by_depth_are_means_of_their_layers() -> None:
    with sa.StreamProcessor(three_layers(), estimator=SLOW) as processor:
        processor(frames(0))
        drift = processor.drift()
    early, middle, late = drift.observed.values()
    assert drift.scores == pytest.approx(
        {"early": early, "middle": middle, "late": late, "model": (early + middle + late) / 3}
    )


def test_a_stream_that_moves_alarms_and_is_learned_anew() -> None:
    events: list[Event] = []
    alarms = Alarms(expected_run_seconds=5e4, background=False)
    model = one_layer()
    with sa.StreamProcessor(
        model, estimator=SLOW, alarms=alarms, on_event=events.append
    ) as processor:
        for second in range(300):
            processor(frames(second), pts_seconds=float(second))
        assert processor.drift().calibrated
        assert not [one for one in events if isinstance(one, DriftDetected)]
        for second in range(300, 310):
            processor(frames(second, offset=0.5), pts_seconds=float(second))
        assert not processor.drift().calibrated
        for second in range(310, 700):
            processor(frames(second, offset=0.5), pts_seconds=float(second))
        assert processor.drift().calibrated
    (alarm,) = [one for one in events if isinstance(one, DriftDetected)]
    assert alarm.by == "early" and alarm.calibrated
    assert alarm.deviation is not None and alarm.deviation > 3.0
    assert 300 <= alarm.step <= 305


def test_one_streams_drift_is_not_anothers_and_two_are_the_fleets() -> None:
    events: list[Event] = []
    with sa.StreamProcessor(
        one_layer(), estimator=SLOW, max_streams=3, alarms=QUICK, on_event=events.append
    ) as processor:
        names = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
        moves = {"a": 400, "b": 450}
        for second in range(500):
            parts = [
                frames(3 * second + k, offset=1.0 if second >= moves.get(name, 9999) else 0.0)
                for k, name in enumerate("abc")
            ]
            processor(torch.cat(parts), streams=names, pts_seconds=float(second))
    alarmed = [one.stream for one in events if isinstance(one, DriftDetected)]
    assert alarmed == ["a", "b"]
    (fleet,) = [one for one in events if isinstance(one, FleetDriftDetected)]
    assert set(fleet.streams) == {"a", "b"}


def test_an_estimator_in_another_world_tells() -> None:
    """A fresh start within the same one does not count."""
    events: list[Event] = []
    with sa.StreamProcessor(three_layers(), on_event=events.append) as processor:
        for step in range(40):
            processor(frames(step, count=8, offset=0.0 if step < 20 else 4.0), pts_seconds=step / 2)
    starts = [
        one.step
        for one in events
        if isinstance(one, PhaseChanged) and one.phase == "settling" and one.before is not None
    ]
    assert min(starts) < 20 <= max(starts)
    (told,) = [one for one in events if isinstance(one, DriftDetected)]
    assert told.by == "estimator" and not told.calibrated
    assert 20 < told.step <= 20 + 8  # frames of eight steps settle


def test_nothing_is_watched_where_that_is_not_wanted() -> None:
    with sa.StreamProcessor(one_layer(), estimator=SLOW, alarms=None) as processor:
        for second in range(3):
            processor(frames(second), pts_seconds=float(second))
        assert not processor.drift().scores


def test_watching_changes_no_bit() -> None:
    outputs = []
    for alarms in (QUICK, None):
        with sa.StreamProcessor(three_layers(), alarms=alarms) as processor:
            outputs.append(
                [processor(frames(step, count=8), pts_seconds=step / 2) for step in range(30)]
            )
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    with sa.StreamProcessor(one_layer(), estimator=SLOW, alarms=Alarms()) as processor:
        for second in range(140):
            processor(frames(second), pts_seconds=float(second))
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(timeout=5.0)
    assert threading.active_count() <= before


def scraped(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def test_an_injected_drift_can_be_followed_from_outside() -> None:
    processor = sa.StreamProcessor(one_layer(), estimator=SLOW, alarms=QUICK)
    with processor, PrometheusExporter(processor, port=0) as exporter:
        assert exporter.url is not None
        read = partial(scraped, exporter.url)
        score = 'streamadapt_drift_score{depth="early",stream="default"}'
        alarms = 'streamadapt_drift_alarms_total{by="early",stream="default"}'
        for second in range(200):
            processor(frames(second), pts_seconds=float(second))
        quiet = read()
        assert alarms not in quiet
        assert abs(quiet['streamadapt_drift_deviation{depth="early",stream="default"}']) < 5.0
        for second in range(200, 220):
            processor(frames(second, offset=1.0), pts_seconds=float(second))
        moved = read()
        assert moved[score] > 5.0 * quiet[score]
        assert moved[alarms] == 1.0
        assert moved["streamadapt_fleet_drift_alarms_total"] == 0.0
        assert moved['streamadapt_drift_calibrated{stream="default"}'] == 0.0


def test_frames_of_a_stream_that_alarms_are_kept_for_labelling(tmp_path: Path) -> None:
    events: list[Event] = []
    alarms = replace(QUICK, export=FrameExport(tmp_path / "to-label", frames=2))
    with sa.StreamProcessor(
        one_layer(), estimator=SLOW, alarms=alarms, max_streams=2, on_event=events.append
    ) as processor:
        for second in range(220):
            moved = 1.0 if second >= 200 else 0.0
            both = torch.cat([frames(second), frames(1000 + second, offset=moved)])
            processor(both, streams=["calm"] * 4 + ["moved"] * 4, pts_seconds=float(second))
    (told,) = [one for one in events if isinstance(one, FramesExported)]
    assert told.stream == "moved"
    kept = load_file(told.path)["frames"]
    assert kept.shape == (2, 3, 8, 8)
    assert torch.equal(kept[0], frames(1000 + told.step, offset=1.0)[0])


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    events: list[Event] = []
    export = FrameExport(tmp_path / "to-label")
    with sa.StreamProcessor(
        one_layer(), estimator=SLOW, alarms=replace(QUICK, export=export), on_event=events.append
    ) as processor:
        for second in range(220):
            if second == 199:
                shutil.rmtree(tmp_path)
                tmp_path.write_text("in the way")
            moved = 1.0 if second >= 200 else 0.0
            processor(frames(second, offset=moved), pts_seconds=float(second))
    assert len([one for one in events if isinstance(one, FrameExportFailed)]) == 1


def test_time_passes_between_the_looks_of_a_shadow() -> None:
    events: list[Event] = []
    with sa.StreamProcessor(
        one_layer(),
        estimator=SLOW,
        mode="shadow",
        shadow_every=2,
        alarms=QUICK,
        on_event=events.append,
    ) as processor:
        for step in range(600):
            moved = 1.0 if step >= 500 else 0.0
            processor(frames(step, offset=moved), pts_seconds=step / 2)  # a candidate a second
    alarms = [one for one in events if isinstance(one, DriftDetected)]
    assert len(alarms) == 1 and 500 <= alarms[0].step < 520


class Broken(CUSUM):
    def update(self, value: float) -> None:
        raise ValueError("no more")


def test_a_detector_that_raises_is_told_and_the_output_returned() -> None:
    events: list[Event] = []
    alarms = Alarms(
        detector=lambda model, **_: Broken(model, expected_run_steps=10.0, threshold=1.0),
        background=False,
    )
    with sa.StreamProcessor(
        one_layer(), estimator=SLOW, alarms=alarms, on_event=events.append
    ) as processor:
        for second in range(200):
            assert processor(frames(second), pts_seconds=float(second)).shape == (4, 5)
    failed = [one for one in events if isinstance(one, DriftFailed)]
    assert failed and failed[0].error == "ValueError: no more"


def test_a_third_of_the_layers_that_never_ran_has_no_score() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    with sa.StreamProcessor(Partly().eval(), estimator=SLOW) as processor:
        processor(frames(0))
        assert set(processor.drift().scores) == {"early", "model"}
