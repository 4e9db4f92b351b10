"""Run by `test_device_commit.py` in a process of its own, in which Triton interprets kernels."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.estimators import EMA, Estimator, Restarting, Welford
from streamadapt.events import Event, KernelsUnavailable, PhaseChanged, StepCompleted
from streamadapt.ops.commit import MOST_FRAMES
from streamadapt.ops.device import device_operations
from tests.commits import NARROW, WIDE, Twins, tell
from tests.models import frames, residual

assert os.environ.get("TRITON_INTERPRET") == "1"
operators = importlib.import_module("streamadapt.ops.commit.triton")

# NumPy, which interprets, says so where values are not finite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

PLAIN = {
    "momentum": EMA(momentum=0.1),
    "frames": EMA(half_life_frames=30.0, rule="pytorch"),
    "seconds": EMA(half_life_seconds=3.0),
    "all frames": Welford(),
    "capped": Welford(max_frames=40.0, prior_frames=5.0),
}


def quick(**arguments: Any) -> Restarting:
    return Restarting(**{"settling_seconds": 0.64, "doubtful_seconds": 1.28, **arguments})


@pytest.mark.parametrize("batch,steps", [(1, 40), (4, 20), (16, 12)])
def test_a_stream_through_all_phases(batch: int, steps: int) -> None:
    estimator = quick(block_frames=min(batch, 2), block_seconds=0.1)
    twins = Twins(operators, estimator, rows=2)
    phases = tell(twins, steps, batch=batch, rows=(1,), period={1: 7, 4: 4, 16: 4}[batch])
    assert phases == {0.0, 1.0, 2.0}
    assert torch.equal(twins.banks[1].data[0, :2], twins.banks[1].source)  # nobody's row


def test_several_rows() -> None:
    twins = Twins(operators, quick(block_seconds=0.3), rows=4)
    assert len(tell(twins, 14, batch=6, rows=(3, 0, 2), period=5, seconds=0.4)) == 3


def test_decisions() -> None:
    """Rows that remember anything at all; every way from phase to phase is taken."""
    twins, taken = Twins(operators, quick(), rows=6), set()
    for round_ in range(9):
        before = scramble(twins)
        one = twins.shown([(0, 3, 3, 1)[round_ % 4]] * 6, rows=range(6), entries=list(range(6)))
        wanted, _ = twins.step(one)
        assert wanted.phase is not None
        taken |= set(zip(before, wanted.phase.tolist(), strict=True))
    assert taken == {(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (1.0, 2.0), (2.0, 0.0), (2.0, 2.0)}


def scramble(twins: Twins) -> list[float]:
    """Put rows of both banks anywhere; returns their phases."""
    generator, bank = twins.generator, twins.banks[0]
    rows = bank.rows

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, generator=generator).double()

    phase = torch.randint(0, 3, (rows,), generator=generator).double()
    values = {
        "phase": phase,
        "settled_frames": uniform(100.0, 400.0),
        "settled_seconds": uniform(1.0, 90.0),
        "pending_frames": uniform(4.0, 20.0).round(),
        "pending_seconds": uniform(0.3, 2.0),
        "blocks": uniform(0.0, 20.0).floor(),
        "excess": uniform(0.0, 9.0),
        "nearer": uniform(0.0, 2.5),
        "recent": uniform(0.02, 0.25),
        "insists": uniform(0.0, 1.3).floor(),
        "level": uniform(0.05, 0.3),
        "material": uniform(0.005, 0.3),
    }
    source = bank.source.repeat(2, 1)
    data = source + 0.1 * twins.draw(rows, *source.shape) * source[1:2].sqrt()
    data[:, 1::2] = data[:, 1::2].abs() + 1e-3
    data[:, :2] = torch.where((phase == 2.0)[:, None, None], source[:2], data[:, :2])
    for one in twins.banks:
        one.data.copy_(data)
        for name, value in values.items():
            one.scalars[:, one.scalar_names.index(name)] = value.to(one.device)
    return phase.tolist()


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_layers_of_many_channels(batch: int) -> None:
    twins = Twins(operators, quick(block_frames=1, block_seconds=0.01), layers=WIDE, rows=1)
    twins.settle([twins.shown([1] * 8, seconds=0.8) for _ in range(3)])
    for world in (1, 1, 3):
        twins.step(twins.shown([world] * batch, level=0.3))


@pytest.mark.parametrize("name", PLAIN)
def test_other_estimators(name: str) -> None:
    twins = Twins(operators, PLAIN[name], layers=WIDE[:2], rows=3)
    for batch, steps in ((1, 4), (5, 8)):
        tell(twins, steps, batch=batch, rows=(2, 0), period=4, seconds=0.4)
    if twins.banks[0].compensated:
        whole = [bank.data[:, :2].double() + bank.data[:, 2:].double() for bank in twins.banks]
        torch.testing.assert_close(whole[1], whole[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "estimator",
    [quick(), PLAIN["momentum"], PLAIN["all frames"]],
    ids=["default", "EMA", "Welford"],
)
def test_what_is_not_to_change_does_not_change_by_a_bit(estimator: Estimator) -> None:
    twins = Twins(operators, estimator, rows=3)
    for _ in range(2):
        twins.step(twins.shown([1, 1, 1, 1], rows=(0, 1, 2), entries=[0, 1, 2, 2]))
    bank = twins.banks[1]
    before = bank.data.clone(), bank.tallies.clone()
    cases = [
        twins.shown([2, 2], rows=(1, 0), entries=[-1, -1]),  # all padding
        twins.shown([2], broken=[0]),
        twins.shown([2, 2, 2, 2], broken=[0, 1, 2, 3]),
        twins.shown([2, 2], rows=(2, 1), entries=[0, 1], held=(True, True)),
    ]
    found = [twins.step(one)[1] for one in cases]
    assert torch.equal(before[0], bank.data) and torch.equal(before[1], bank.tallies)
    assert not found[1].moments.mean.any()


@pytest.mark.parametrize(
    "estimator",
    [quick(), PLAIN["momentum"], PLAIN["all frames"]],
    ids=["default", "EMA", "Welford"],
)
def test_numbers_too_large_for_the_bank_are_refused(estimator: Estimator) -> None:
    twins = Twins(operators, estimator, rows=1)
    if isinstance(estimator, Restarting):  # a row that is settling refuses nothing
        twins.settle([twins.shown([1] * 8, seconds=0.8) for _ in range(3)])
    far = twins.shown([1, 1, 1])
    far.observed.mean[:, 1] = 1e300
    assert twins.step(far)[1].verdict.tolist() == [-3.0]


def test_views_and_repeated_runs() -> None:
    """Moments side by side in one tensor; the same bits every time."""
    results = []
    for _ in range(2):
        twins = Twins(operators, quick(), rows=2)
        commit, bank = twins.commit, twins.banks[1]
        one = twins.shown([1] * 5, rows=(1, 0), entries=[0, 0, 0, 0, 1])
        both = torch.full((5, 2, twins.padded), torch.nan, dtype=torch.float64)
        both[:, 0], both[:, 1] = one.observed.mean, one.observed.var
        outcome = commit.outcome(rows=2, frames=5)
        commit.launch(
            both[:, 0],
            both[:, 1],
            weights=one.weights,
            elapsed=one.elapsed,
            allowed=torch.ones(2, dtype=torch.float64),
            rows=torch.tensor([1, 0]),
            positions=one.observed.layer_positions,
            outcome=outcome,
            room=commit.room(rows=2, frames=5),
        )
        twins.by_pytorch(one, twins.banks[0], twins.layouts[0])
        twins.agree()
        results.append([*vars(outcome).values(), bank.data, bank.tallies])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert not any(one.isnan().any() for one in results[0])


def test_parameters_are_read_when_it_runs() -> None:
    twins = Twins(operators, quick(clip=0.2, block_frames=1, block_seconds=0.01), rows=1)
    twins.settle([twins.shown([1] * 8, seconds=0.8) for _ in range(3)])
    for arguments in ({}, {"clip": 2.0, "max_weight": 1.0, "prior_seconds": 5.0}, {"alarm": 1.01}):
        twins.estimator = quick(**{"block_frames": 1, "block_seconds": 0.01, **arguments})
        twins.commit.adopt(twins.estimator)
        twins.step(twins.shown([1, 1], level=0.3))


def test_steps_that_are_too_large_are_left_to_pytorch() -> None:
    twins = Twins(operators, quick(), rows=1)
    one = twins.shown([0] * (MOST_FRAMES + 1))
    assert twins.commit([0], one.observed, one.weights, elapsed=one.elapsed, held=None) is None
    assert not twins.failures


def test_there_are_kernels_for_three_estimators() -> None:
    class Own(EMA):
        pass

    twins = Twins(operators, PLAIN["momentum"])
    of = type(twins.commit).of
    for estimator in (Own(), sa.estimators.Frozen()):
        assert of(operators, estimator, twins.layouts[1], twins.banks[1]) is None
    assert of(None, PLAIN["momentum"], twins.layouts[1], twins.banks[1]) is None


def test_constants_are_those_of_the_specification() -> None:
    from streamadapt.estimators import memory, restarting
    from streamadapt.ops.commit import plan
    from streamadapt.ops.commit.triton import blending, pooling, settings
    from streamadapt.ops.reduce import reference

    def value(module: Any, name: str) -> float:
        return float(getattr(module, name).value)

    for name, wanted in {
        "SETTLING": restarting.SETTLING,
        "FOLLOWING": restarting.FOLLOWING,
        "RESTING": restarting.RESTING,
        "LONGEST_FRAME": memory.MAX_SECONDS_PER_FRAME,
        "SHORTEST_FRAME": restarting._LEAST_SECONDS,
        "TRUSTED_SIGMAS": restarting._TRUSTED_SIGMAS,
        "LEAST_VARIANCE": math.exp(restarting._TRUSTED_LOG_VARIANCES[0]),
        "MOST_VARIANCE": math.exp(restarting._TRUSTED_LOG_VARIANCES[1]),
        "TINY": restarting._TINY,
        "LEVEL_HALF_LIFE": restarting._LEVEL_HALF_LIFE_FRAMES,
        "KNOWN_AFTER": restarting._KNOWN_AFTER_FRAMES,
        "LEARNED_AFTER": restarting._LEARNED_AFTER_BLOCKS,
        "SLACK": restarting._SLACK,
        "PATIENCE": restarting._PATIENCE,
        "NEARER_LIMIT": restarting._NEARER,
        "NEARER_SLACK": restarting._NEARER_SLACK,
        "LARGEST_RATIO": restarting._LARGEST_RATIO,
        "LEAST_SHARE": restarting._LEAST_SHARE,
    }.items():
        assert value(settings, name) == wanted, name
    assert value(blending, "LONGEST_FRAME") == memory.MAX_SECONDS_PER_FRAME
    assert value(pooling, "LARGEST") == restarting._LARGEST_DISTANCE == reference._LARGEST
    assert value(pooling, "ENOUGH_FRAMES") == reference._ENOUGH_FRAMES
    assert value(pooling, "USUAL") == reference._USUAL
    assert value(pooling, "FLOOR") == reference._TINY
    assert value(pooling, "FURTHEST") == reference._FURTHEST
    assert tuple(Restarting().scalars) == plan.SCALARS
    for names, module in ((plan.SCALARS, settings), (plan.BLENDING, blending)):
        for place, name in enumerate(names):
            assert name == "rests" or value(module, name.upper()) == place
    for place, name in enumerate(plan.RESTARTING):
        assert value(settings, {"level": "USUAL_LEVEL"}.get(name, name.upper())) == place
    assert value(pooling, "KEPT") == plan._KEPT
    assert value(settings, "PARTS") == value(blending, "PARTS") == plan._PARTS


@pytest.mark.parametrize("estimator", [quick(), PLAIN["frames"]], ids=["default", "EMA"])
def test_operators_are_what_they_say(estimator: Estimator) -> None:
    twins = Twins(operators, estimator, layers=NARROW[:1], rows=2)
    one, commit, bank = twins.shown([1] * 4, rows=(1,)), twins.commit, twins.banks[1]
    room, outcome = commit.room(rows=1, frames=4), commit.outcome(rows=1, frames=4)
    arguments = [
        one.observed.mean,
        one.observed.var,
        one.weights,
        one.elapsed[:, 0],
        torch.ones(1, dtype=torch.float64),
        torch.tensor([1]),
        one.observed.layer_positions,
        commit.parameters,
        bank.source,
        commit.places.chunks,
        commit.places.layers,
        bank.data,
        bank.tallies,
        *vars(outcome).values(),
        *(torch.zeros_like(room) for room in vars(room).values()),
    ]
    if isinstance(estimator, Restarting):
        operator = torch.ops.streamadapt.commit_restarting.default
    else:
        operator = torch.ops.streamadapt.commit_blended.default
        del arguments[8]
        arguments += [1, True]
    torch.library.opcheck(operator, tuple(arguments))


# Whole engines -----------------------------------------------------------------------------------


def model() -> nn.Module:
    return residual()


def story(
    patched: pytest.MonkeyPatch, found: tuple[Any, str | None], **arguments: Any
) -> tuple[sa.StreamProcessor, list[Event]]:
    events: list[Event] = []
    commits, problem = found
    normalises = device_operations("native", device_type="cpu")
    kernels = dataclasses.replace(normalises, commits=commits), problem
    patched.setattr("streamadapt.processor.choose_kernels", lambda *_: kernels)
    arguments = {"alarms": None, "class_scores": False, "backend": "hooks", **arguments}
    return sa.StreamProcessor(copy.deepcopy(model()), on_event=events.append, **arguments), events


@pytest.mark.parametrize("estimator", [quick(), PLAIN["all frames"]], ids=["default", "Welford"])
def test_a_processor_tells_the_same_story(
    estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories = [
        story(monkeypatch, found, estimator=estimator, max_streams=2)
        for found in ((operators, None), (None, None))
    ]
    assert stories[0][0]._runtime.engine.commits.by_kernels is not None
    with torch.inference_mode():
        for step in range(14):
            batch = frames(6, seed=step, shift=2.0 if step > 6 else 0.0)
            outputs = [
                one(batch, streams=["a", "b", "a"] * 2, pts_seconds=0.3 * step)
                for one, _ in stories
            ]
            torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    told = [
        [
            one.outcome if isinstance(one, StepCompleted) else one
            for one in events
            if isinstance(one, StepCompleted | PhaseChanged | KernelsUnavailable)
        ]
        for _, events in stories
    ]
    assert told[0] == told[1]
    assert not stories[0][0]._runtime.engine.commits.by_kernels._failed  # type: ignore[union-attr]


def test_kernels_that_fail_are_told_of_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def commit_restarting(self, *arguments: Any) -> None:
            raise RuntimeError("no compiler")

    stories = [story(monkeypatch, found) for found in ((Broken(), None), (None, None))]
    with torch.inference_mode():
        for step in range(4):
            for one, _ in stories:
                one(frames(4, seed=step, shift=1.0), pts_seconds=0.3 * step)
    (event,) = [one for one in stories[0][1] if isinstance(one, KernelsUnavailable)]
    assert "no compiler" in event.reason
    states = [one.statistics() for one, _ in stories]
    for name, moments in states[0].items():
        assert torch.equal(torch.as_tensor(moments.mean), torch.as_tensor(states[1][name].mean))


def test_without_triton_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one, events = story(monkeypatch, (None, "Triton cannot be imported"))
    with torch.inference_mode():
        one(frames(2, seed=0))
    (event,) = [one for one in events if isinstance(one, KernelsUnavailable)]
    assert event.reason == "Triton cannot be imported"
