"""The default estimator in a processor: home, another world, and what settling passes cost."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.bank import State
from streamadapt.estimators import EMA, Observation, Restarting
from streamadapt.events import (
    Event,
    FramesRejected,
    PhaseChanged,
    SettlingFailed,
    SettlingPassed,
    SettlingRefused,
    UpdateFailed,
)
from streamadapt.moments import Moments
from streamadapt.testing import frames, tiny_model

GAIN, OFFSET = 0.4, 3.0


def home() -> nn.Module:
    """A model whose statistics are those of `frames`."""
    return sa.adabn(tiny_model(), [frames(512, seed=99)], method="layerwise")


def away(count: int, seed: int) -> Tensor:
    return frames(count, seed=seed, gain=GAIN, offset=OFFSET)


class Feed:
    """Shows batches one after the other at 25 frames a second."""

    def __init__(self, processor: sa.StreamProcessor, stream: str | None = None) -> None:
        self.processor, self.stream, self.shown = processor, stream, 0

    def __call__(self, batch: Tensor, **kwargs: Any) -> Tensor:
        stamps = [(self.shown + k) / 25 for k in range(len(batch))]
        self.shown += len(batch)
        with torch.no_grad():
            output: Tensor = self.processor(
                batch, pts_seconds=stamps, streams=self.stream, **kwargs
            )
        return output


def phases(events: list[Event]) -> list[str]:
    return [event.phase for event in events if isinstance(event, PhaseChanged)]


def test_at_home_the_answers_are_the_frozen_models_to_the_bit() -> None:
    model, events = home(), list[Event]()
    frozen = copy.deepcopy(model)
    with sa.StreamProcessor(model, on_event=events.append) as processor:
        feed = Feed(processor)
        for seed in range(60):
            batch = frames(16, seed=seed)
            output = feed(batch)
            if seed > 3:
                with torch.no_grad():
                    assert torch.equal(output, frozen(batch))
        assert processor.drift().overall == 0.0
    assert phases(events) == ["settling", "resting"]
    assert sum(isinstance(event, SettlingPassed) for event in events) == 4  # 64 frames


@pytest.mark.parametrize("size", [1, 4, 16, 64])
def test_in_another_world_it_ends_near_layerwise_adabn(size: int) -> None:
    model, events = home(), list[Event]()
    wanted = sa.adabn(model, [away(512, 98)], method="layerwise")
    with sa.StreamProcessor(model, on_event=events.append) as processor:
        feed = Feed(processor)
        for seed in range(512 // size):
            feed(frames(size, seed=seed))
        for seed in range(512 // size):
            feed(away(size, seed))
        first = processor.statistics()["bn1"]
    assert phases(events) == ["settling", "resting", "settling", "following"]
    sigma = wanted.bn1.running_var.sqrt()
    assert ((first.mean - wanted.bn1.running_mean).abs() < 0.35 * sigma).all()
    assert ((first.var / wanted.bn1.running_var).log().abs() < 0.35).all()


def test_synchronous_timing_answers_a_new_world_in_its_first_batch() -> None:
    batch, distances = away(64, 7), {}
    wanted = sa.adabn(home(), [away(512, 98)], method="layerwise")
    for timing in ("lagged", "synchronous"):
        with sa.StreamProcessor(home(), timing=timing) as processor:
            feed = Feed(processor)
            for seed in range(6):
                feed(frames(64, seed=seed))
            output = feed(batch)
        with torch.no_grad():
            distances[timing] = float((output - wanted(batch)).norm())
    assert distances["synchronous"] < 0.5 * distances["lagged"]


def test_a_stream_that_settles_leaves_the_others_alone() -> None:
    with sa.StreamProcessor(home(), max_streams=2, class_scores=False) as processor:
        calm = Feed(processor, "calm")
        for seed in range(8):
            calm(frames(16, seed=seed))
        kept = processor.statistics("calm")
        together = torch.cat([frames(16, seed=50), away(16, 51)])
        with torch.no_grad():
            for _ in range(6):
                processor(together, streams=["calm"] * 16 + ["moved"] * 16, pts_seconds=9.0)
        after = processor.statistics("calm")
        for name, moments in kept.items():
            assert torch.equal(moments.mean, after[name].mean)
            assert torch.equal(moments.var, after[name].var)
        assert processor.drift("moved").overall > 0.1


def test_frames_are_counted_once() -> None:
    with sa.StreamProcessor(home()) as processor:
        feed = Feed(processor)
        for seed in range(10):
            feed(away(16, seed))
        bank = processor._runtime.engine.bank
        assert float(bank.frames[0]) == 160.0
        assert float(bank.updates[0]) == 10.0


def test_padding_is_answered_and_teaches_nothing() -> None:
    results = []
    for filler in (0.0, 1e3):
        with sa.StreamProcessor(home()) as processor:
            feed = Feed(processor)
            for seed in range(12):
                batch = torch.cat([away(12, seed), torch.full((4, 3, 8, 8), filler)])
                assert len(feed(batch, valid=12)) == 16
            results.append(processor.statistics())
            assert float(processor._runtime.engine.bank.frames[0]) == 144.0
    for name, moments in results[0].items():
        assert torch.equal(moments.mean, results[1][name].mean)
        assert torch.equal(moments.var, results[1][name].var)


def test_padding_of_several_streams() -> None:
    with sa.StreamProcessor(home(), max_streams=2) as processor, torch.no_grad():
        output = processor(frames(6), streams=["a", "b", "a"], pts_seconds=[0.0] * 3, valid=3)
        assert len(output) == 6
        rows = processor._runtime.engine.bank.frames.tolist()
        assert rows == [2.0, 1.0]
        assert len(processor(frames(2), valid=0)) == 2
        assert processor._runtime.engine.bank.frames.tolist() == rows


@pytest.mark.parametrize("valid", [-1, 5, 2.0, True])
def test_an_impossible_number_of_real_frames_is_refused(valid: Any) -> None:
    with (
        sa.StreamProcessor(home()) as processor,
        pytest.raises(sa.errors.StreamError, match="`valid` must be a whole number from 0 to 4"),
    ):
        processor(frames(4), valid=valid)


def test_one_wild_frame_hardly_counts_beside_others() -> None:
    ends = []
    for wild in (False, True):
        with sa.StreamProcessor(home()) as processor:
            feed = Feed(processor)
            for seed in range(30):
                batch = away(8, seed)
                if wild:
                    batch[3] = 400.0 * torch.randn(3, 8, 8, generator=torch.Generator())
                feed(batch)
            ends.append(processor.statistics()["bn1"])
    quiet, hit = ends
    sigma = quiet.var.sqrt()
    assert ((hit.mean - quiet.mean).abs() < 0.1 * sigma).all()
    assert ((hit.var / quiet.var).log().abs() < 0.1).all()


def test_frames_that_are_not_finite_do_not_stop_it() -> None:
    events: list[Event] = []
    with sa.StreamProcessor(home(), on_event=events.append) as processor:
        feed = Feed(processor)
        for seed in range(12):
            batch = away(8, seed)
            batch[seed % 8] = float("nan")
            feed(batch)
        assert processor.drift().overall > 0.1
        for moments in processor.statistics().values():
            assert bool(torch.isfinite(moments.mean + moments.var).all())
    assert sum(isinstance(event, FramesRejected) for event in events) == 12
    assert not any(isinstance(event, UpdateFailed) for event in events)


class Once(nn.Module):
    """Can be run once for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = home(), None

    def forward(self, x: Tensor) -> Tensor:
        if self.last is x:
            raise RuntimeError("the same frames again")
        self.last = x
        output: Tensor = self.inner(x)
        return output


def test_a_model_that_cannot_be_run_twice_stays_on_the_source_and_says_so() -> None:
    events: list[Event] = []
    with sa.StreamProcessor(Once().eval(), on_event=events.append) as processor:
        feed = Feed(processor)
        for seed in range(8):
            assert feed(away(16, seed)).shape == (16, 4)
        assert processor.drift().overall == 0.0
        assert any("settling" in reason for reason in processor.status.reasons)
    failed = [event for event in events if isinstance(event, SettlingFailed)]
    assert len(failed) == 8
    assert "the same frames again" in failed[0].error


def test_after_a_rollback_to_the_source_it_settles_anew() -> None:
    events: list[Event] = []
    with sa.StreamProcessor(home(), on_event=events.append) as processor:
        feed = Feed(processor)
        for seed in range(8):
            feed(away(16, seed))
        processor.rollback("source")
        assert processor.drift().overall == 0.0
        for seed in range(8, 16):
            feed(away(16, seed))
        assert processor.drift().overall > 0.1
    assert phases(events) == ["settling", "following"] * 2


def test_shadow_settles_too_and_changes_no_answer() -> None:
    model, events = home(), list[Event]()
    frozen = copy.deepcopy(model)
    with sa.StreamProcessor(
        model, mode="shadow", shadow_every=1, on_event=events.append
    ) as processor:
        feed = Feed(processor)
        for seed in range(10):
            batch = away(16, seed)
            with torch.no_grad():
                assert torch.equal(feed(batch), frozen(batch))
        assert processor.drift().overall > 0.1
    assert phases(events) == ["settling", "following"]


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
def test_a_journal_replays_to_the_same_state(tmp_path: Path, timing: Any) -> None:
    journal = sa.journal.Journal(tmp_path, state_every=5)
    with sa.StreamProcessor(home(), max_streams=2, journal=journal, timing=timing) as processor:
        one, two = Feed(processor, "one"), Feed(processor, "two")
        for seed in range(12):
            one(frames(16, seed=seed) if seed < 6 else away(16, seed))
            two(away(3, seed))
        ended = processor.statistics("one")
    replay = sa.journal.replay_journal(tmp_path)
    assert replay.same
    assert replay.deviation < 1e-5
    assert sum(replay.streams["one"].frames) == 12 * 16
    for name, moments in ended.items():
        torch.testing.assert_close(replay.statistics["one"][name].mean, moments.mean)
        torch.testing.assert_close(replay.statistics["one"][name].var, moments.var)


def test_a_profile_sets_what_is_usual_and_belongs_to_its_model(tmp_path: Path) -> None:
    model = home()
    profile = sa.calibrate(model, [frames(64, seed=seed) for seed in range(4)])
    assert profile.frames == 256
    path = tmp_path / "profile.safetensors"
    profile.save(path)
    with sa.StreamProcessor(model, profile=path) as processor:
        assert processor.calibrated
        estimator = processor.describe().estimator
        assert estimator == repr(Restarting().calibrated(profile))
        assert estimator != repr(Restarting())
        feed = Feed(processor)
        for seed in range(30):
            feed(frames(16, seed=seed))
        assert processor.drift().overall == 0.0
        for seed in range(8):
            feed(away(16, seed))
        assert processor.drift().overall > 0.1
        processor.model.load_state_dict(home().state_dict())
        feed(frames(16))
        assert not processor.calibrated  # it was of the source that is gone
    with pytest.raises(sa.errors.ConfigurationError, match="`profile` is of another model"):
        sa.StreamProcessor(tiny_model(seed=5), profile=profile)
    assert not sa.StreamProcessor(tiny_model(), estimator=EMA()).calibrated


class Sometimes(nn.Module):
    """Runs its second layer only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.deep = home(), True

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner.act1(self.inner.bn1(self.inner.conv1(x)))
        return self.inner.act2(self.inner.bn2(self.inner.conv2(x))) if self.deep else x


def test_a_layer_that_did_not_run_starts_anew_with_the_others() -> None:
    model, events = Sometimes().eval(), list[Event]()
    source = model.inner.bn2.running_mean.clone()
    with sa.StreamProcessor(model, on_event=events.append) as processor:
        feed = Feed(processor)
        for seed in range(12):
            feed(away(16, seed))
        assert not torch.equal(processor.statistics()["inner.bn2"].mean.float(), source)
        model.deep = False
        for seed in range(6):
            feed(frames(16, seed=seed))
        assert phases(events)[:3] == ["settling", "following", "settling"]
        assert torch.equal(processor.statistics()["inner.bn2"].mean.float(), source)


def outspoken() -> nn.Module:
    """A model whose answers differ from frame to frame."""
    model = home()
    with torch.no_grad():
        model.head.weight.mul_(30.0)
    return model


class Wrong(Restarting):
    """Settles on statistics that make every frame look alike."""

    def update(self, state: State, observed: Observation) -> State:
        seen = super().update(state, observed)
        if not observed.settling:
            return seen
        assert seen.aside is not None
        var = torch.full_like(seen.moments.var, 1e6)
        found = Moments(seen.moments.count, seen.moments.mean, var)
        return seen.advance(found, aside=Moments(seen.aside.count, seen.aside.mean, var))


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize("streams", [None, "one"])
def test_answers_that_say_less_than_the_sources_are_refused(size: int, streams: str | None) -> None:
    events: list[Event] = []
    options: dict[str, Any] = {} if streams is None else {"max_streams": 3}
    with sa.StreamProcessor(
        outspoken(), estimator=Wrong(), on_event=events.append, **options
    ) as processor:
        feed = Feed(processor, streams)
        for seed in range(96 // size):
            feed(frames(size, seed=seed))
        assert processor.phase(streams) == "resting"
        assert processor.drift(streams).overall == 0.0
        assert not processor.event_counts.get("SettlingFailed")
    refused = [event for event in events if isinstance(event, SettlingRefused)]
    assert [event.stream for event in refused] == [streams or "default"]
    passes = sum(isinstance(event, SettlingPassed) for event in events)
    assert passes == -(-16 // size)  # judged by 16 frames


class Named(nn.Module):
    """Answers as Transformers' models do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": self.model(x)}


def test_scores_with_a_name_are_judged_as_well() -> None:
    events: list[Event] = []
    with sa.StreamProcessor(
        Named(outspoken()), estimator=Wrong(), on_event=events.append
    ) as processor:
        feed = Feed(processor)
        for seed in range(2):
            feed(frames(64, seed=seed))
    assert sum(isinstance(event, SettlingRefused) for event in events) == 1


def test_other_outputs_than_class_scores_are_not_judged(tmp_path: Path) -> None:
    class Maps(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).unsqueeze(-1).unsqueeze(-1)

    for model, judged in ((outspoken(), False), (Maps(outspoken()), True)):
        events: list[Event] = []
        with sa.StreamProcessor(
            model, estimator=Wrong(), on_event=events.append, class_scores=judged
        ) as processor:
            feed = Feed(processor)
            for seed in range(4):
                feed(frames(16, seed=seed))
        assert not any(isinstance(event, SettlingRefused) for event in events)


def test_a_refusal_is_replayed_from_the_journal(tmp_path: Path) -> None:
    with sa.StreamProcessor(outspoken(), estimator=Wrong(), journal=tmp_path) as processor:
        feed = Feed(processor)
        for seed in range(8):
            feed(frames(16, seed=seed))
        assert processor.phase("default") == "resting"
    assert sa.journal.replay_journal(tmp_path, estimator=Wrong()).same
