"""Every k-th batch adapts; what answers those in between, and when it may."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.errors import ConfigurationError
from streamadapt.events import (
    DriftDetected,
    EngineBuilt,
    EngineFailed,
    Event,
    PhaseChanged,
    StepCompleted,
)
from streamadapt.journal import Journal, replay_journal
from tests.integration.test_folded import FOLDED, MODEL, world
from tests.models import same, state_of

EMA = sa.estimators.EMA(half_life_seconds=4.0)


class Told:
    """A processor on a copy of the model, and its events."""

    def __init__(self, model: nn.Module = MODEL, **arguments: Any) -> None:
        self.events: list[Event] = []
        arguments = {"alarms": None, "class_scores": False, "estimator": EMA, **arguments}
        self.model = copy.deepcopy(model)
        self.processor = sa.StreamProcessor(self.model, on_event=self.events.append, **arguments)

    @property
    def outcomes(self) -> list[str]:
        return [one.outcome for one in self.events if isinstance(one, StepCompleted)]

    def of(self, kind: type[Event]) -> list[Any]:
        return [one for one in self.events if isinstance(one, kind)]


@pytest.fixture(autouse=True)
def without_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def run(told: Told, steps: range, name: str = "source", count: int = 4) -> None:
    for step in steps:
        told.processor(world(name, step, count), pts_seconds=step * 0.16)


def assert_same_statistics(one: Told, other: Told, stream: Any = None) -> None:
    a, b = one.processor.statistics(stream), other.processor.statistics(stream)
    for name in a:
        torch.testing.assert_close(a[name].mean, b[name].mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a[name].var, b[name].var, rtol=1e-6, atol=1e-6)


def test_every_kth_batch_adapts() -> None:
    told = Told(adapt_every=4)
    run(told, range(10))
    assert told.outcomes == ["updated", *["between"] * 3] * 2 + ["updated", "between"]
    assert "adapts every 4 batches; in between answers the model" in str(told.processor.describe())
    assert not told.processor.status.reasons


@pytest.mark.parametrize("model", ["plain", "folded"])
def test_it_is_a_processor_that_sees_every_kth_batch(model: str) -> None:
    """In camera time: frames in between are time that passed."""
    whole = MODEL if model == "plain" else FOLDED
    duty, sparse = (Told(whole, adapt_every=every, refold_every=1) for every in (4, 1))
    for step in range(41):
        batch, stamp = world("fog", step, 4), step * 0.16
        output = duty.processor(batch, pts_seconds=stamp)
        if step % 4 == 0:
            torch.testing.assert_close(
                output, sparse.processor(batch, pts_seconds=stamp), rtol=1e-5, atol=1e-5
            )
        else:
            baked = sparse.processor.adapted_model()
            torch.testing.assert_close(output, baked(batch), rtol=1e-5, atol=1e-5)
    assert duty.outcomes.count("updated") == 11
    assert_same_statistics(duty, sparse)


def test_without_time_stamps_a_frame_in_between_is_a_25th_of_a_second() -> None:
    instant = Told(adapt_every=4, clock=lambda: 0.0)
    stamped = Told(adapt_every=4)
    for step in range(13):
        instant.processor(world("fog", step, 4))
        stamped.processor(world("fog", step, 4), pts_seconds=0.16 * (step + 1))
    # The first batch has no time before it when stamped.
    instant.processor.rollback("source")
    stamped.processor.rollback("source")
    for step in range(13, 26):
        instant.processor(world("fog", step, 4))
        stamped.processor(world("fog", step, 4), pts_seconds=0.16 * (step + 1))
    assert_same_statistics(instant, stamped)


def test_a_frame_never_stands_for_more_than_a_second() -> None:
    """At two frames a second, every second one adapts."""
    told = Told(adapt_every=8)
    for step in range(8):
        told.processor(world("source", step, 1), pts_seconds=step * 0.5)
    assert told.outcomes.count("updated") == 4


def test_settling_takes_no_longer_and_a_change_brings_every_batch_back() -> None:
    told = Told(adapt_every=8, estimator=sa.estimators.Restarting())
    changes = []
    for step in range(120):
        name = "source" if step < 60 else "fog"
        told.processor(world(name, step, 8), pts_seconds=step * 0.32)
        changes = [(one.phase, one.step) for one in told.of(PhaseChanged)]
    rested = next(step for phase, step in changes if phase == "resting")
    settles = next(step for phase, step in changes if phase == "settling" and step > 60)
    follows = next(step for phase, step in changes if phase == "following" and step > 60)
    assert told.outcomes[: rested + 1] == ["updated"] * (rested + 1)
    assert told.outcomes[rested + 1 : 60].count("between") > 6 * (60 - rested) / 8
    # The first frames that are looked at are unlike the row; from then on all are.
    first = next(step for step in range(60, 120) if told.outcomes[step] == "updated")
    assert first < 68 and settles <= first + 3
    assert told.outcomes[first : follows + 1] == ["updated"] * (follows + 1 - first)
    assert follows - settles <= 12
    assert "between" in told.outcomes[follows + 1 :]


def test_an_alarm_brings_every_batch_back_for_a_while() -> None:
    told = Told(adapt_every=4)
    run(told, range(6))
    assert told.outcomes[-1] == "between"
    told.processor._runtime.drift._on_alarm(0)  # as a detector's alarm does
    run(told, range(6, 90))
    assert told.outcomes[6:70] == ["updated"] * 64  # 10.24 seconds
    assert "between" in told.outcomes[70:]
    assert not told.of(DriftDetected)


def test_several_streams_are_due_each_for_itself() -> None:
    told, sparse = (Told(adapt_every=every, max_streams=2) for every in (3, 1))
    for step in range(24):
        for stream in ("a", "b") if step % 2 == 0 else ("a",):
            batch = world("fog" if stream == "a" else "night", step, 4)
            arguments: Any = {"streams": stream, "pts_seconds": step * 0.16}
            output = told.processor(batch, **arguments)
            if told.outcomes[-1] == "updated":
                wanted = sparse.processor(batch, **arguments)
            else:
                wanted = sparse.processor.adapted_model(stream)(batch)
            torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-4)
    for stream in ("a", "b"):
        assert_same_statistics(told, sparse, stream)
    assert told.outcomes.count("updated") == 8 + 4


def test_a_rollback_and_a_new_stream_adapt_at_once() -> None:
    told = Told(adapt_every=8, max_streams=2)
    for step in range(3):
        told.processor(world("fog", step, 4), streams="a", pts_seconds=step * 0.16)
    told.processor(world("fog", 3, 4), streams="b", pts_seconds=0.48)
    told.processor(world("fog", 4, 4), streams="a", pts_seconds=0.64)
    assert told.outcomes == ["updated", "between", "between", "updated", "between"]
    told.processor.rollback("source", stream="a")
    told.processor(world("fog", 5, 4), streams="a", pts_seconds=0.8)
    assert told.outcomes[-1] == "updated"


def test_freezing_and_shadow_and_guard() -> None:
    told = Told(adapt_every=4, guard=sa.Guard(), class_scores=True)
    run(told, range(5))
    told.processor.freeze()
    run(told, range(5, 10))
    assert told.outcomes[5:] == ["frozen"] * 5
    told.processor.resume()
    told.processor.mode = "shadow"
    run(told, range(10, 14))
    assert "between" not in told.outcomes[10:]
    told.processor.mode = "adapt"
    run(told, range(14, 18))
    assert told.outcomes[14:] == ["updated", *["between"] * 3]
    # What will be labelled is answered on the source's statistics as well.
    told.processor(world("fog", 18, 4), ids=list("abcd"), pts_seconds=18 * 0.16)
    assert told.outcomes[-1] == "updated"
    assert told.processor.reveal(list("abcd"), [0, 1, 2, 3]) == 4


@pytest.mark.parametrize("estimator", [EMA, sa.estimators.Restarting()], ids=str)
def test_its_journal_replays_to_the_same_statistics(
    estimator: sa.estimators.Estimator, tmp_path: Path
) -> None:
    journal = Journal(tmp_path, state_every=4)
    told = Told(adapt_every=3, estimator=estimator, journal=journal)
    run(told, range(40))
    run(told, range(40, 80), "fog")
    wanted = told.processor.statistics()
    told.processor.unwrap()
    assert "between" in told.outcomes
    replay = replay_journal(tmp_path)
    assert replay.same and replay.lost == 0
    for layer, moments in wanted.items():
        got = replay.statistics["default"][layer]
        torch.testing.assert_close(got.mean, moments.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.var, moments.var, rtol=1e-5, atol=1e-5)


# The engine in between --------------------------------------------------------------------------


class Building:
    """Builds on demand, and counts what it built and answered."""

    def __init__(self, *, wait: bool = False) -> None:
        self.built: list[nn.Module] = []
        self.answers = 0
        self.go = threading.Event()
        self.begun = threading.Event()
        self.fails = False
        if not wait:
            self.go.set()

    def __call__(self, model: nn.Module) -> Callable[[Tensor], Any]:
        self.begun.set()
        assert self.go.wait(60)
        if self.fails:
            raise RuntimeError("no compiler")
        baked = copy.deepcopy(model)
        self.built.append(model)

        def answer(frames: Tensor) -> Any:
            self.answers += 1
            return baked(frames)

        return answer


def test_an_engine_answers_batches_in_between() -> None:
    building = Building()
    told = Told(adapt_every=4, between=sa.between.Builder(building, name="own", moved=1e9))
    run(told, range(1))
    told.processor.flush()
    assert told.of(EngineBuilt)[0].engine == "own"
    baked = told.processor.adapted_model()
    for step in range(1, 4):
        batch = world("source", step, 4)
        output = told.processor(batch, pts_seconds=step * 0.16)
        torch.testing.assert_close(output, baked(batch), rtol=1e-4, atol=1e-4)
    assert building.answers == 3
    run(told, range(4, 40))
    told.processor.flush()
    assert len(building.built) == 1
    kept = [one for one in building.built[0].modules() if isinstance(one, nn.BatchNorm2d)]
    assert len(kept) == 1  # the one that follows no convolution
    with torch.enable_grad():  # what was built for inference has no gradients
        answers = building.answers
        run(told, range(40, 44))
        assert building.answers == answers
    assert "in between answers own" in str(told.processor.describe())


def test_it_is_built_anew_when_statistics_have_moved_and_not_used_when_far_off() -> None:
    building = Building()
    told = Told(adapt_every=2, between=sa.between.Builder(building, moved=0.003))
    run(told, range(1))
    told.processor.flush()
    building.go.clear()
    run(told, range(1, 30), "fog")
    answered = building.answers
    run(told, range(30, 34), "fog")
    assert building.answers == answered  # far off, and not built yet
    building.go.set()
    told.processor.flush()
    run(told, range(34, 36), "fog")
    told.processor.flush()
    assert len(building.built) >= 2
    batch = world("fog", 99, 4)
    run(told, range(36, 37), "fog")
    while told.outcomes[-1] != "updated":
        run(told, range(37, 38), "fog")
    told.processor.flush()
    answered, step = building.answers, len(told.outcomes)
    output = told.processor(batch, pts_seconds=step * 0.16)
    if building.answers > answered:
        wanted = told.processor.adapted_model()(batch)
        torch.testing.assert_close(output, wanted, rtol=0.2, atol=0.2)


def test_a_build_of_a_state_that_is_gone_is_thrown_away() -> None:
    """Rollback, freezing and resets end what is in use and what is being built."""
    building = Building(wait=True)
    told = Told(adapt_every=4, between=sa.between.Builder(building, moved=1e9))
    run(told, range(8), "fog")
    assert building.begun.wait(60)
    told.processor.rollback("source")
    source = told.processor.adapted_model()
    building.go.set()
    told.processor.flush()
    assert not told.of(EngineBuilt)
    told.processor.freeze()  # so that the state is the one that can be compared
    probe = world("haze", 0, 4)
    for step in range(8, 20):
        output = told.processor(probe, pts_seconds=step * 0.16)
        torch.testing.assert_close(output, source(probe), rtol=1e-4, atol=1e-4)
        told.processor.flush()
    assert building.answers > 0 and told.of(EngineBuilt)
    told.processor.resume()
    told.processor.rollback("source")
    answers = building.answers
    building.go.clear()
    run(told, range(20, 24))
    assert building.answers == answers
    building.go.set()
    told.processor.flush()


def test_unwrapping_waits_for_nothing_and_gives_the_model_back() -> None:
    building = Building(wait=True)
    told = Told(FOLDED, adapt_every=4, between=building)
    before = state_of(told.model)
    run(told, range(6), "fog")
    assert building.begun.wait(60)
    told.processor.unwrap()
    assert same(before, state_of(told.model))
    building.go.set()


def test_a_failing_build_is_told_and_the_adapted_model_answers() -> None:
    building = Building()
    building.fails = True
    told = Told(adapt_every=4, between=building)
    run(told, range(1))
    told.processor.flush()
    run(told, range(1, 8))
    (failed,) = told.of(EngineFailed)
    assert failed.engine == "Building" and "no compiler" in failed.error
    assert told.outcomes == ["updated", *["between"] * 3] * 2
    assert "batches in between run on the adapted model" in told.processor.status.reasons[0]
    # A state of another kind is tried at once.
    building.fails = False
    told.processor.rollback("source")
    run(told, range(8, 9))
    told.processor.flush()
    run(told, range(9, 12))
    assert building.answers == 3 and not told.processor.status.reasons


def test_an_engine_that_raises_is_not_asked_again() -> None:
    def build(model: nn.Module) -> Callable[[Tensor], Any]:
        def answer(frames: Tensor) -> Any:
            raise RuntimeError("out of memory")

        return answer

    told = Told(adapt_every=4, between=build)
    run(told, range(1))
    told.processor.flush()
    batch = world("source", 1, 4)
    output = told.processor(batch, pts_seconds=0.16)
    torch.testing.assert_close(output, told.processor.adapted_model()(batch), rtol=1e-4, atol=1e-4)
    run(told, range(2, 12))
    (failed,) = told.of(EngineFailed)
    assert failed.engine == "build" and "out of memory" in failed.error


def test_a_live_engine_is_written_in_place() -> None:
    built = []

    def build(model: nn.Module) -> Callable[[Tensor], Any]:
        built.append(model)
        return model

    builder = sa.between.Builder(build, live=True, moved=1e-9)
    told = Told(adapt_every=2, between=builder)
    run(told, range(1), "fog")
    told.processor.flush()
    for step in range(1, 21):
        batch = world("fog", step, 4)
        output = told.processor(batch, pts_seconds=step * 0.16)
        if told.outcomes[-1] == "between":
            wanted = told.processor.adapted_model()(batch)
            torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-4)
    assert len(built) == 1


BUILDERS = {
    "onednn": sa.between.onednn,
    "onnxruntime_session": sa.between.onnxruntime_session,
    "inductor_frozen": sa.between.inductor_frozen,
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "name", [*list(BUILDERS)[:2], pytest.param("inductor_frozen", marks=pytest.mark.slow)]
)
def test_ready_made_engines(name: str, mode: Any) -> None:
    if name == "onnxruntime_session":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    if name == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN")
    if name == "inductor_frozen" and mode is torch.inference_mode:
        pytest.skip("takes long, and is the same")
    with mode():
        builder = BUILDERS[name](world("source", 0, 4))
        told = Told(adapt_every=4, between=builder)
        run(told, range(1), "fog")
        told.processor.flush()
        assert [one.engine for one in told.of(EngineBuilt)] == [name], told.of(EngineFailed)
        probe = world("haze", 0, 4)
        wanted = told.processor.adapted_model()(probe)
        output = told.processor(probe, pts_seconds=0.16)
        torch.testing.assert_close(output, wanted, rtol=1e-3, atol=1e-3)
        own = told.processor._runtime.between
        assert own is not None and own.ready
        other = told.processor(probe[:3], pts_seconds=0.32)  # not what it was built for
        torch.testing.assert_close(other, wanted[:3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", list(BUILDERS)[:2])
def test_steps_go_on_while_engines_are_built(name: str) -> None:
    """Whatever the thread that builds does to the process, answers are the adapted model's."""
    if name == "onnxruntime_session":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    made = BUILDERS[name](world("source", 0, 4))
    builder = sa.between.Builder(made.build, name=name, example=made.example, moved=1e-5)
    told = Told(FOLDED, adapt_every=2, between=builder, refold_every=1)
    other = copy.deepcopy(MODEL)
    fixed = world("source", 0, 4)
    wanted_of_other = other(fixed)
    for step in range(1000):
        batch = world("fog" if step % 40 > 20 else "haze", step, 4)
        baked = told.processor.adapted_model() if step % 10 == 0 else None
        output = told.processor(batch, pts_seconds=step * 0.16)
        if baked is not None:
            torch.testing.assert_close(output, baked(batch), rtol=3e-2, atol=3e-2)
        assert torch.equal(other(fixed), wanted_of_other)
        if step > 60 and len(told.of(EngineBuilt)) >= 3:
            break
    assert len(told.of(EngineBuilt)) >= 2 and not told.of(EngineFailed)
    told.processor.unwrap()


def test_what_makes_no_sense_is_refused() -> None:
    refused: list[tuple[str, dict[str, Any]]] = [
        ("a whole number from 1", {"adapt_every": 0}),
        ("no batch is in between", {"between": Building()}),
        ("of one stream", {"between": Building(), "adapt_every": 2, "max_streams": 2}),
        ("synchronous", {"between": Building(), "adapt_every": 2, "timing": "synchronous"}),
        ("must be a function", {"between": "onnx", "adapt_every": 2}),
        ("must be a function", {"between": nn.ReLU(), "adapt_every": 2}),
    ]
    for message, arguments in refused:
        with pytest.raises(ConfigurationError, match=message):
            Told(**arguments)
    with pytest.raises(ConfigurationError, match="`moved` must be positive"):
        sa.between.Builder(Building(), moved=0.0)
    with pytest.raises(ConfigurationError, match="float32"):
        sa.between.onednn(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
