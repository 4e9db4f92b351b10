"""A journal of real steps: it tells what was, replays it, and no disk stops a stream."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.errors import ConfigurationError
from streamadapt.events import Event, JournalDropped, JournalFailed
from streamadapt.journal import Journal, JournalReader, replay_journal
from streamadapt.journal.writer import FileWriter
from tests.models import Residual, randomise

SAFE = sa.estimators
LAGGED = [SAFE.EMA(half_life_frames=20), SAFE.EMA(momentum=0.1, rule="mixture"), SAFE.Welford()]
LAGGED += [SAFE.Welford(prior_frames=8), SAFE.DUA(), SAFE.MECTA(), SAFE.Restarting()]
SYNCHRONOUS = [SAFE.BatchStatistics(), SAFE.SourcePrior(16), SAFE.AlphaBN(0.9), SAFE.EMA()]
SYNCHRONOUS += [SAFE.Restarting()]


def model() -> nn.Module:
    return randomise(Residual())


def frames(step: int, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(count, 3, 8, 8, generator=generator) * (1 + step / 20) + step / 10


def drive(processor: sa.StreamProcessor, steps: int = 30) -> None:
    """Two cameras, a spoilt frame, a rollback, a freeze, a camera that goes and comes back."""
    for step in range(steps):
        batch = frames(step)
        if step == 5:
            batch[1] = float("nan")
        if step == 9:
            processor.snapshot("here")
        if step == 14:
            processor.rollback("here")
        if step == 17:
            processor.freeze()
        if step == 19:
            processor.resume()
        if step == 22:
            processor.drop_stream("b")
        streams = ["a"] * 6 if step % 7 == 3 else ["a", "b", "a", "b", "b", "b"]
        processor(batch, streams=streams, pts_seconds=[step / 5] * 6)


@pytest.mark.parametrize("precision", ["single", "half"])
@pytest.mark.parametrize(
    ("estimator", "timing"),
    [(one, "lagged") for one in LAGGED if "lagged" in one.timings]
    + [(one, "synchronous") for one in SYNCHRONOUS],
    ids=str,
)
def test_a_replay_of_what_was_recorded_ends_in_the_same_statistics(
    estimator: sa.estimators.Estimator, timing: str, precision: str, tmp_path: Path
) -> None:
    journal = Journal(tmp_path, precision=precision, state_every=4)  # type: ignore[arg-type]
    with sa.StreamProcessor(
        model(),
        estimator=estimator,
        timing=timing,  # type: ignore[arg-type]
        max_streams=2,
        journal=journal,
    ) as processor:
        drive(processor)
        wanted = {name: processor.statistics(name) for name in ("a", "b")}
    passes = processor.event_counts.get("SettlingPassed", 0)
    assert (passes > 0) == isinstance(estimator, SAFE.Restarting)
    replay = replay_journal(tmp_path)
    assert replay.same
    assert (replay.lost, replay.records) == (0, 31 + passes)
    tolerance = 1e-5 if precision == "single" else 5e-3
    assert replay.deviation < tolerance
    for name, layers in wanted.items():
        for layer, moments in layers.items():
            got = replay.statistics[name][layer]
            torch.testing.assert_close(got.mean, moments.mean, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(got.var, moments.var, rtol=tolerance, atol=tolerance)
        one = replay.streams[name]
        np.testing.assert_allclose(one.replayed, one.recorded, rtol=20 * tolerance, atol=tolerance)


def test_another_estimator_is_exact_in_the_first_layer(tmp_path: Path) -> None:
    first = nn.BatchNorm2d(3)
    with sa.StreamProcessor(
        randomise(nn.Sequential(first, nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))),
        estimator=SAFE.EMA(momentum=0.3),
        journal=tmp_path,
    ) as processor:
        for step in range(20):
            processor(frames(step))
    other = SAFE.Welford(prior_frames=10)
    with sa.StreamProcessor(
        randomise(
            nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        ),
        estimator=other,
    ) as truth:
        for step in range(20):
            truth(frames(step))
        wanted = truth.statistics()
    replay = replay_journal(tmp_path, estimator=other)
    assert not replay.same
    got = replay.statistics["default"]
    torch.testing.assert_close(got["0"].mean, wanted["0"].mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got["0"].var, wanted["0"].var, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got["3"].mean, wanted["3"].mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", [SAFE.EMA(), SAFE.Restarting()], ids=["EMA", "Restarting"])
def test_outputs_and_statistics_are_the_same_with_and_without(
    estimator: sa.estimators.Estimator, tmp_path: Path
) -> None:
    outputs = []
    for journal in (None, tmp_path):
        with sa.StreamProcessor(
            model(), estimator=estimator, max_streams=2, journal=journal
        ) as processor:
            drive(processor)
            output = processor(frames(99), streams="a", pts_seconds=9.0)
            outputs.append((output, processor.statistics("a")))
            assert processor.drift("a").overall > 0.0
    (plain, before), (recorded, after) = outputs
    assert torch.equal(plain, recorded)
    assert all(torch.equal(before[name].mean, after[name].mean) for name in before)


def test_what_happened_stands_in_the_journal_and_no_image_does(tmp_path: Path) -> None:
    with sa.StreamProcessor(
        model(), estimator=SAFE.EMA(), max_streams=2, journal=tmp_path
    ) as processor:
        drive(processor)
    records = [payload for _, payload in JournalReader(tmp_path)]
    outcomes = {payload.meta["outcome"] for payload in records}
    assert {"updated", "frozen", None} <= outcomes
    events = [one["event"] for payload in records for one in payload.meta["events"]]
    for expected in (
        "StreamAdmitted",
        "FramesRejected",
        "RolledBack",
        "StreamDropped",
        "Unwrapped",
    ):
        assert expected in events
    spoilt = records[5].meta
    assert spoilt["frames"] == [2, 4]
    assert spoilt["committed"] == [2, 3]
    assert spoilt["pts_seconds"] == [1.0, 1.0]
    logits = records[0].health
    assert logits is not None
    assert (logits[:, 1] > 0).all()
    assert (logits[:, 1] <= 1).all()
    layers = JournalReader(tmp_path).__iter__().__next__()[0]
    per_step = 2 * 2 * 4 * layers.channels
    size = sum(file.stat().st_size for file in tmp_path.glob("*.saj"))
    assert size < len(records) * (3 * per_step + 2000)


def test_a_settling_pass_is_a_record_behind_its_steps(tmp_path: Path) -> None:
    with sa.StreamProcessor(model(), max_streams=2, journal=tmp_path) as processor:
        drive(processor)
    records = [payload.meta for _, payload in JournalReader(tmp_path)]
    again = [index for index, meta in enumerate(records) if meta.get("settling")]
    assert len(again) == processor.event_counts["SettlingPassed"] > 0
    assert len(records) == 31 + len(again)
    for index in again:
        step, its_pass = records[index - 1], records[index]
        assert "settling" not in step
        for name in ("step", "streams", "rows", "frames", "pts_seconds", "elapsed_seconds"):
            assert its_pass[name] == step[name]
        # Rows that were not due for one took no part.
        pairs = zip(its_pass["committed"], step["committed"], strict=True)
        assert all(one in (0, other) for one, other in pairs)
    events = [one["event"] for meta in records for one in meta["events"]]
    assert events.count("SettlingPassed") == len(again)
    assert "PhaseChanged" in events


def test_health_is_what_numpy_says(tmp_path: Path) -> None:
    with sa.StreamProcessor(model(), max_streams=2, journal=tmp_path) as processor:
        scores = processor(frames(0), streams=["a", "b", "b", "a", "b", "b"])
    scores = scores.detach().double().numpy()
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    health = next(iter(JournalReader(tmp_path)))[1].health
    assert health is not None
    for row, members in enumerate(([0, 3], [1, 2, 4, 5])):
        entropy = -(p[members] * np.log(p[members])).sum(axis=1).mean()
        mean = p[members].mean(axis=0)
        classes = np.exp(-(mean * np.log(mean)).sum())
        expected = [entropy, p[members].max(axis=1).mean(), classes]
        np.testing.assert_allclose(health[row], expected, rtol=1e-4)


def test_a_journal_keeps_within_its_bounds_and_replays_from_where_it_begins(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path, max_file_bytes=20_000, max_files=3, state_every=5)
    with sa.StreamProcessor(model(), estimator=SAFE.EMA(), journal=journal) as processor:
        for step in range(120):
            processor(frames(step))
        processor.flush()
        wanted = processor.statistics()
    files = sorted(tmp_path.glob("*.saj"))
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) <= 3 * 20_000
    replay = replay_journal(tmp_path)
    assert replay.streams["default"].steps[0] > 0
    assert replay.deviation < 1e-5
    for layer, moments in replay.statistics["default"].items():
        torch.testing.assert_close(moments.mean, wanted[layer].mean, rtol=1e-5, atol=1e-5)


def test_a_replaced_source_begins_a_file_and_a_second_run_another(tmp_path: Path) -> None:
    net = model()
    with sa.StreamProcessor(net, estimator=SAFE.EMA(), journal=tmp_path) as processor:
        processor(frames(0))
        net.load_state_dict(randomise(Residual(), seed=5).state_dict())
        processor(frames(1))
        wanted = processor.statistics()
    replay = replay_journal(tmp_path)
    assert len(replay.files) == 2
    for layer, moments in replay.statistics["default"].items():
        torch.testing.assert_close(moments.mean, wanted[layer].mean, rtol=1e-5, atol=1e-5)
    with sa.StreamProcessor(model(), journal=tmp_path) as processor:
        processor(frames(0))
    assert len(replay_journal(tmp_path).files) == 3


def test_a_folder_is_one_processors(tmp_path: Path) -> None:
    with (
        sa.StreamProcessor(model(), journal=tmp_path),
        pytest.raises(ConfigurationError, match="Another processor keeps its journal"),
    ):
        sa.StreamProcessor(model(), journal=tmp_path)
    sa.StreamProcessor(model(), journal=tmp_path).unwrap()


def test_a_full_disk_is_told_and_the_stream_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileWriter, "append", full)
    with sa.StreamProcessor(model(), journal=tmp_path, on_event=events.append) as processor:
        for step in range(5):
            assert len(processor(frames(step))) == 6
            processor.flush()
    failed = [event for event in events if isinstance(event, JournalFailed)]
    assert "No space left" in failed[0].reason
    assert any(isinstance(event, JournalDropped) for event in events)
    assert processor.event_counts["StepCompleted"] == 5


def test_a_slow_disk_costs_records_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real: Callable[..., None] = FileWriter.append

    def slow(*arguments: object) -> None:
        gate.wait(20)
        real(*arguments)

    monkeypatch.setattr(FileWriter, "append", slow)
    events: list[Event] = []
    journal = Journal(tmp_path, queue_records=4, state_every=3)
    with sa.StreamProcessor(
        model(), estimator=SAFE.EMA(), journal=journal, on_event=events.append
    ) as processor:
        for step in range(20):
            processor(frames(step))
        gate.set()
        processor.flush()
        for step in range(20, 30):
            processor(frames(step))
            processor.flush()
        wanted = processor.statistics()
    dropped = sum(event.records for event in events if isinstance(event, JournalDropped))
    assert 10 <= dropped <= 20
    replay = replay_journal(tmp_path)
    assert replay.lost == dropped
    for layer, moments in replay.statistics["default"].items():
        torch.testing.assert_close(moments.mean, wanted[layer].mean, rtol=1e-5, atol=1e-5)


def test_thresholds_and_detectors_see_the_same_series(tmp_path: Path) -> None:
    with sa.StreamProcessor(
        model(), estimator=SAFE.EMA(momentum=0.3), journal=tmp_path
    ) as processor:
        for step in range(40):
            processor(frames(60 if 20 <= step < 30 else 0))

    class Above:
        drift_detected = False

        def __init__(self) -> None:
            self.seen: list[float] = []
            seen.append(self.seen)

        def update(self, value: float) -> None:
            before = self.seen[-1] if self.seen else 0.0
            self.seen.append(value)
            self.drift_detected = value > limit >= before

    seen: list[list[float]] = []
    series = replay_journal(tmp_path).streams["default"].replayed
    limit = max(series[:20]) * 2
    by_threshold = replay_journal(tmp_path, threshold=limit).streams["default"].alarms
    by_detector = replay_journal(tmp_path, detector=Above).streams["default"].alarms
    assert by_threshold == by_detector
    assert 20 in by_threshold
    assert seen[0] == series
    sure = replay_journal(tmp_path, threshold=0.0, signal="confidence").streams["default"]
    assert sure.alarms == [0]
    with pytest.raises(ConfigurationError, match="not both"):
        replay_journal(tmp_path, threshold=1.0, detector=Above)


def test_an_estimator_from_elsewhere_has_to_be_given(tmp_path: Path) -> None:
    class Own(SAFE.EMA):
        """Somebody else's."""

        def __repr__(self) -> str:
            return "Own()"

    with sa.StreamProcessor(model(), estimator=Own(momentum=0.2), journal=tmp_path) as processor:
        processor(frames(0))
    with pytest.raises(ConfigurationError, match="Give `estimator`"):
        replay_journal(tmp_path)
    assert replay_journal(tmp_path, estimator=Own(momentum=0.2)).same


def test_unwrapping_ends_the_writers_thread(tmp_path: Path) -> None:
    with sa.StreamProcessor(model(), journal=tmp_path) as processor:
        processor(frames(0))
        assert any(one.name == "streamadapt-journal" for one in threading.enumerate())
    assert not any(one.name == "streamadapt-journal" for one in threading.enumerate())
    assert sorted(os.listdir(tmp_path)) == ["journal-000001.saj", "journal.lock"]
