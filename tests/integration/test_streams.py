"""Streams, snapshots, rollback, freezing, and shadow mode."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import streamadapt as sa
from tests.models import Residual, frames, randomise, residual, same, state_of


def means(processor, stream=None):
    return {name: m.mean for name, m in processor.statistics(stream).items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def kinds(events, *wanted):
    return [event for event in events if isinstance(event, wanted)]


ESTIMATORS = [sa.estimators.EMA(), sa.estimators.Restarting()]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=["EMA", "Restarting"])
@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
def test_a_mixed_batch_gives_each_stream_what_it_would_have_had_alone(timing, estimator):
    options = {"estimator": estimator, "max_streams": 3, "timing": timing}
    mixed = sa.StreamProcessor(residual(), **options)
    alone = {name: sa.StreamProcessor(residual(), **options) for name in "abc"}
    for seed in range(20):
        x = frames(6, seed=seed)
        names = ["a", "b", "c", "a", "c", "a"]
        for i, name in enumerate(names):
            x[i] = x[i] * (1 + "abc".index(name)) + "abc".index(name)
        stamps = [seed / 4 + i / 25 for i in range(6)]
        together = mixed(x, streams=names, pts_seconds=stamps)
        for name, processor in alone.items():
            mine = [i for i, n in enumerate(names) if n == name]
            output = processor(x[mine], streams=name, pts_seconds=[stamps[i] for i in mine])
            torch.testing.assert_close(output, together[mine], rtol=1e-4, atol=1e-4)
    for name, processor in alone.items():
        for layer, mean in means(processor, name).items():
            torch.testing.assert_close(means(mixed, name)[layer], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=["EMA", "Restarting"])
def test_one_stream_in_a_bank_of_many_matches_the_bound_path(estimator):
    bound = sa.StreamProcessor(residual(), estimator=estimator)
    rows = sa.StreamProcessor(residual(), estimator=estimator, max_streams=4)
    for seed in range(20):
        x, now = frames(3, seed=seed, shift=seed // 4), {"pts_seconds": seed / 4}
        torch.testing.assert_close(bound(x, **now), rows(x, **now), rtol=1e-4, atol=1e-4)
    assert bound.drift().overall > 0.0


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        (
            ["a", "b"],
            "`streams` has 2 entries for a batch of 3 frames. Give one entry a frame, or a single "
            "name for all of them.",
        ),
        ([["a"], "b", "c"], "A stream must be hashable, such as a string; got ['a']."),
        (
            ["a", "b", "c"],
            "The batch has 3 streams, the bank has 2 rows. Raise `max_streams`, or send fewer "
            "streams in one batch.",
        ),
        (
            ["y", "z", "y"],
            "No row for stream 'z': all 2 are taken. Raise `max_streams`, call drop_stream() for a "
            'stream that has ended, or set `when_full="evict"`.',
        ),
    ],
)
def test_streams_that_do_not_fit_are_refused_before_the_forward(streams, message):
    model = residual()
    calls = []
    model.conv1.register_forward_hook(lambda *_: calls.append(1))
    processor = sa.StreamProcessor(model, estimator=sa.estimators.EMA(), max_streams=2)
    processor(frames(1), streams=["x"])
    before = means(processor, "x")
    with pytest.raises(sa.errors.StreamError) as caught:
        processor(frames(3), streams=streams)
    assert str(caught.value) == message
    assert len(calls) == 1 and processor.streams == ("x",) and equal(before, means(processor, "x"))


def test_the_least_recently_used_stream_is_evicted():
    events = []
    processor = sa.StreamProcessor(
        residual(), max_streams=2, when_full="evict", on_event=events.append
    )
    for name in ["a", "b", "a", "c"]:
        processor(frames(2, shift=2.0), streams=name)
    assert processor.streams == ("a", "c")
    dropped = kinds(events, sa.events.StreamDropped)
    assert [(event.stream, event.evicted) for event in dropped] == [("b", True)]
    processor(frames(2), streams=["b", "c"])
    assert processor.streams == ("b", "c")


def test_a_dropped_stream_starts_again_from_the_source():
    processor = sa.StreamProcessor(residual(), estimator=sa.estimators.EMA(), max_streams=2)
    processor(frames(2, shift=3.0), streams="a")
    processor.drop_stream("a")
    assert processor.streams == ()
    processor(frames(2)[:0])
    processor(frames(1), streams="b")
    with pytest.raises(sa.errors.StreamError, match=r"Unknown stream 'a': 1 known \('b'\)\."):
        processor.drift("a")
    processor.freeze()
    processor(frames(1), streams="a")
    assert processor.drift("a").overall == 0.0


def test_a_single_stream_may_be_dropped_and_the_model_is_on_the_source_again():
    model = residual()
    source = model.bn1.running_mean.clone()
    processor = sa.StreamProcessor(model, estimator=sa.estimators.EMA())
    processor(frames(2, shift=3.0))
    assert not torch.equal(model.bn1.running_mean, source)
    processor.drop_stream("default")
    assert torch.equal(model.bn1.running_mean, source)


@pytest.mark.parametrize("max_streams", [1, 2])
def test_snapshot_and_rollback_restore_to_the_bit(max_streams):
    events = []
    processor = sa.StreamProcessor(
        residual(), estimator=sa.estimators.DUA(), max_streams=max_streams, on_event=events.append
    )
    x = [frames(3, seed=seed, shift=seed) for seed in range(6)]
    for batch in x[:3]:
        processor(batch)
    name = processor.snapshot()
    first = [processor(batch) for batch in x[3:]]
    after = means(processor)
    processor.rollback(reason="test")
    second = [processor(batch) for batch in x[3:]]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert equal(after, means(processor))
    (rolled,) = kinds(events, sa.events.RolledBack)
    assert (rolled.to, rolled.streams, rolled.reason) == (name, ("default",), "test")


def test_rollback_to_the_source_and_by_stream():
    processor = sa.StreamProcessor(residual(), estimator=sa.estimators.EMA(), max_streams=2)
    processor(frames(2, shift=2.0), streams=["a", "b"])
    processor.snapshot("noon")
    processor(frames(2, shift=9.0), streams=["a", "b"])
    moved = means(processor, "b")
    processor.rollback("noon", stream="a")
    assert equal(moved, means(processor, "b"))
    processor.rollback("source", stream="a")
    assert processor.drift("a").overall == 0.0 and processor.drift("b").overall > 0.0
    processor.rollback("source")
    assert processor.drift("b").overall == 0.0


def test_a_snapshot_before_the_first_frame_is_the_source():
    processor = sa.StreamProcessor(residual(), estimator=sa.estimators.EMA())
    processor.snapshot("start")
    processor(frames(3, shift=4.0))
    assert processor.drift().overall > 0.0
    processor.rollback("start")
    assert processor.drift().overall == 0.0


def test_snapshots_are_bounded_and_named_errors_are_clear():
    events = []
    processor = sa.StreamProcessor(
        residual(), estimator=sa.estimators.EMA(), max_snapshots=2, on_event=events.append
    )
    with pytest.raises(sa.errors.SnapshotError) as caught:
        processor.rollback()
    assert str(caught.value) == (
        "Cannot roll back: no snapshot has been taken. Call processor.snapshot() first, or roll "
        'back to "source".'
    )
    processor(frames(1))
    before = means(processor)
    for name in ("one", "two", "three"):
        processor.snapshot(name)
        assert kinds(events, sa.events.SnapshotTaken)[-1].name == name
    assert [event.name for event in kinds(events, sa.events.SnapshotDropped)] == ["one"]
    with pytest.raises(sa.errors.SnapshotError, match="No snapshot named 'one'"):
        processor.rollback("one")
    with pytest.raises(sa.errors.ConfigurationError, match="Choose another name"):
        processor.snapshot("source")
    assert equal(before, means(processor))


def test_freeze_stops_updates_and_keeps_the_statistics():
    processor = sa.StreamProcessor(residual(), estimator=sa.estimators.EMA())
    processor(frames(3, shift=2.0))
    before, x = means(processor), frames(2)
    plain = processor.adapted_model()
    processor.freeze()
    torch.testing.assert_close(processor(x), plain(x))
    assert equal(before, means(processor)) and processor.frozen
    processor.resume()
    processor(x)
    assert not equal(before, means(processor))


def test_frozen_runs_the_source_bit_for_bit():
    model = residual()
    expected = model(frames(3))
    for options in ({}, {"max_streams": 2}):
        with sa.StreamProcessor(model, estimator=sa.estimators.Frozen(), **options) as processor:
            assert torch.equal(processor(frames(3)), expected)
            assert processor.drift().overall == 0.0


def test_an_adapted_model_is_plain_and_gives_the_same_answers():
    processor = sa.StreamProcessor(residual(), estimator=sa.estimators.EMA(), max_streams=2)
    processor(frames(4, shift=2.0), streams="a")
    twin = processor.adapted_model("a")
    assert type(twin) is Residual and not twin.training
    assert "forward" not in twin.bn1.__dict__ and not twin.bn1._state_dict_hooks
    processor.freeze()
    x = frames(3)
    torch.testing.assert_close(twin(x), processor(x, streams="a"), rtol=1e-4, atol=1e-5)
    assert twin.bn1.weight is not processor.model.bn1.weight


def test_memory_in_camera_time():
    def run(rate, batch):
        processor = sa.StreamProcessor(
            nn.Sequential(nn.BatchNorm2d(3)).eval(),
            estimator=sa.estimators.EMA(half_life_seconds=4.0),
        )
        x = torch.full((batch, 3, 2, 2), 1.0)
        count = int(8 * rate / batch)
        for i in range(count + 1):
            stamps = [(i * batch + k) / rate for k in range(batch)]
            processor(x, pts_seconds=stamps)
        return float(processor.statistics()["0"].mean[0])

    slow, fast = run(5.0, 16), run(25.0, 1)
    assert fast == pytest.approx(0.75, abs=0.01)
    assert slow == pytest.approx(1 - 2 ** (-(16 * 3 / 5) / 4), abs=0.02)
    with pytest.raises(sa.errors.StreamError, match="2 entries for a batch of 1"):
        sa.StreamProcessor(residual())(frames(1), pts_seconds=[0.0, 1.0])


def test_the_clock_gives_the_time_of_frames_without_a_stamp():
    now = [0.0]
    processor = sa.StreamProcessor(
        nn.Sequential(nn.BatchNorm2d(3)).eval(),
        estimator=sa.estimators.EMA(half_life_seconds=1.0),
        clock=lambda: now[0],
    )
    for moment in (0.0, 1.0, 100.0):
        now[0] = moment
        processor(torch.ones(1, 3, 2, 2))
    # The first frame stands for 1/25 s; a gap counts as one second a frame at most.
    assert float(processor.statistics()["0"].mean[0]) == pytest.approx(1 - 2 ** -(0.04 + 1 + 1))


def test_frames_without_a_stamp_are_never_closer_than_a_twenty_fifth_of_a_second():
    processor = sa.StreamProcessor(
        nn.Sequential(nn.BatchNorm2d(3)).eval(),
        estimator=sa.estimators.EMA(half_life_seconds=1.0),
        clock=lambda: 7.0,
    )
    for count in (3, 4):
        processor(torch.ones(count, 3, 2, 2))
    assert float(processor.statistics()["0"].mean[0]) == pytest.approx(1 - 2 ** -(7 / 25))
    processor(torch.zeros(2, 3, 2, 2), pts_seconds=7.0)  # stamps are believed
    assert float(processor.statistics()["0"].mean[0]) == pytest.approx(1 - 2 ** -(7 / 25))


class TestShadow:
    """Shadow mode: source outputs, and the candidate's verdict beside them."""

    @pytest.mark.parametrize("max_streams", [1, 2])
    @pytest.mark.parametrize("timing", ["lagged", "synchronous"])
    def test_outputs_are_the_sources_to_the_bit(self, timing, max_streams):
        model, events = residual(), []
        source = state_of(model)
        x = [frames(4, seed=seed, shift=2.0) for seed in range(7)]
        with torch.inference_mode():
            expected = [model(batch) for batch in x]
        processor = sa.StreamProcessor(
            model,
            mode="shadow",
            timing=timing,
            shadow_every=2,
            max_streams=max_streams,
            estimator=sa.estimators.EMA(0.5),
            on_event=events.append,
        )
        with torch.inference_mode():
            assert all(
                torch.equal(processor(batch), want) for batch, want in zip(x, expected, strict=True)
            )
        assert same(state_of(model), source)
        outcomes = [event.outcome for event in kinds(events, sa.events.StepCompleted)]
        assert outcomes == ["updated", "idle"] * 3 + ["updated"]
        compared = kinds(events, sa.events.ShadowCompared)
        assert len(compared) == 4 and processor.drift().overall > 0.05
        assert all(0.0 <= event.agreement <= 1.0 for event in compared)
        assert compared[-1].relative_difference > 0.0

    @pytest.mark.parametrize("estimator", ESTIMATORS, ids=["EMA", "Restarting"])
    def test_the_candidate_is_what_adapt_would_have_been(self, estimator):
        x = [frames(4, seed=seed, shift=2.0) for seed in range(10)]
        shadow = sa.StreamProcessor(residual(), estimator=estimator, mode="shadow", shadow_every=1)
        adapt = sa.StreamProcessor(residual(), estimator=estimator, max_streams=2)
        for step, batch in enumerate(x):
            shadow(batch, pts_seconds=step / 2)
            adapt(batch, pts_seconds=step / 2)
        assert adapt.drift().overall > 0.05
        for name, mean in means(adapt).items():
            torch.testing.assert_close(means(shadow)[name], mean, rtol=1e-6, atol=1e-7)

    def test_a_candidate_that_fails_costs_nothing(self):
        class Fragile(Residual):
            calls = 0

            def forward(self, x):
                self.calls += 1
                if self.calls % 2 == 0:
                    raise ValueError("second pass")
                return super().forward(x)

        processor = sa.StreamProcessor(randomise(Fragile()), mode="shadow", shadow_every=1)
        assert processor(frames(2)).shape == (2, 5)
        assert processor.event_counts["ShadowFailed"] == 1
        assert processor.status.reasons == ("the candidate pass failed: ValueError: second pass",)

    def test_the_random_stream_of_the_model_is_not_disturbed(self):
        class Noisy(Residual):
            def forward(self, x):
                return super().forward(x) + torch.randn(1)

        model = randomise(Noisy())
        torch.manual_seed(0)
        expected = [model(frames(2)) for _ in range(3)]
        torch.manual_seed(0)
        with sa.StreamProcessor(model, mode="shadow", shadow_every=1) as processor:
            assert all(torch.equal(processor(frames(2)), want) for want in expected)

    def test_going_to_adapt_starts_from_the_source(self):
        model = residual()
        source = state_of(model)
        processor = sa.StreamProcessor(
            model, estimator=sa.estimators.EMA(), mode="shadow", shadow_every=1
        )
        processor(frames(4, shift=3.0))
        processor.mode = "adapt"
        assert processor.drift().overall == 0.0 and same(state_of(model), source)
        processor(frames(4, shift=3.0))
        assert not same(state_of(model), source)
        processor.mode = "shadow"
        assert same(state_of(model), source)

    def test_other_outputs_than_classes(self):
        model = nn.Sequential(randomise(nn.Sequential(nn.BatchNorm2d(3))), nn.Flatten(0))
        events = []
        with sa.StreamProcessor(model, mode="shadow", on_event=events.append) as processor:
            processor(frames(2))
        (compared,) = kinds(events, sa.events.ShadowCompared)
        assert compared.agreement is None and math.isfinite(compared.relative_difference)


def test_describe_says_what_there_is():
    processor = sa.StreamProcessor(residual(), max_streams=2, estimator=sa.estimators.EMA(0.1))
    processor(frames(1), streams="a")
    text = str(processor.describe())
    assert "Residual on cpu: 3 adapted layers, 24 channels" in text
    assert "EMA(momentum=0.1, rule='mixture'), lagged, adapt" in text
    assert "streams: 1 of 2" in text and "bn2" in text
    assert processor.describe().as_dict()["layers"][1]["name"] == "bn2"
    assert repr(processor).startswith("StreamProcessor(Residual, layers=3")


def test_layers_can_be_chosen():
    processor = sa.StreamProcessor(residual(), layers=["bn1"])
    before = processor.model.bn2.running_mean.clone()
    processor(frames(3, shift=2.0))
    assert list(processor.statistics()) == ["bn1"]
    assert torch.equal(processor.model.bn2.running_mean, before)
    assert processor.describe().notes == ("left out by `layers=`: bn2, bn3",)


def test_status_reports_the_age_of_the_last_update():
    processor = sa.StreamProcessor(residual())
    assert processor.status.last_update_age_seconds is None
    processor(frames(1))
    age = processor.status.last_update_age_seconds
    assert age is not None and 0.0 <= age < 60.0 and processor.status.healthy
    assert processor.update_age_seconds() >= age
