"""A folded model under a processor tells the unfolded one's story."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.doctor import examine_model
from streamadapt.events import Event, PhaseChanged, SettlingPassed, StepCompleted
from streamadapt.taps.folded import FoldedLayer
from tests.models import randomise, same, state_of

WORLDS = {"source": (1.0, 0.0), "fog": (0.4, 1.2), "night": (0.5, -1.5), "haze": (0.8, 0.3)}


class Net(nn.Module):
    """Convolutions with a BatchNorm, a branch, and one BatchNorm that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.side = nn.Sequential(nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12))
        self.alone = nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, 40, 3, stride=2), nn.BatchNorm2d(40)
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.alone(torch.relu(self.bn2(self.conv2(x)) + self.side(x)))
        x = nn.functional.relu6(self.bn3(self.conv3(x)))
        return self.head(x.mean((2, 3)))


def world(name: str, seed: int, count: int) -> Tensor:
    scale, offset = WORLDS[name]
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, 3, 18, 18, generator=generator) + offset


def net() -> nn.Module:
    model = randomise(Net())
    with torch.no_grad():
        model.train()
        for seed in range(60):
            model(world("source", seed, 16))
    return model.eval()


MODEL = net()
FOLDED = sa.fold(MODEL)


class Story:
    """A processor and what it told."""

    def __init__(self, model: nn.Module, **arguments: Any) -> None:
        self.events: list[Event] = []
        arguments = {"alarms": None, "class_scores": False, "refold_every": 1, **arguments}
        self.model = copy.deepcopy(model)
        self.processor = sa.StreamProcessor(self.model, on_event=self.events.append, **arguments)

    def told(self) -> list[Any]:
        kinds = PhaseChanged | SettlingPassed
        found: list[Any] = [one for one in self.events if isinstance(one, kinds)]
        return found + [one.outcome for one in self.events if isinstance(one, StepCompleted)]


def same_state(one: Story, other: Story, streams: list[str | None], tolerance: float) -> None:
    for stream in streams:
        a, b = one.processor.statistics(stream), other.processor.statistics(stream)
        assert a.keys() == b.keys()
        for name in a:
            deviation = (b[name].var + 1e-5).sqrt()
            assert float(((a[name].mean - b[name].mean) / deviation).abs().max()) < tolerance, name
            ratio = ((a[name].var + 1e-5) / (b[name].var + 1e-5)).log()
            assert float(ratio.abs().max()) < tolerance, name


ESTIMATORS = {
    "default": sa.estimators.Restarting(),
    "EMA": sa.estimators.EMA(momentum=0.05),
    "Welford": sa.estimators.Welford(),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["auto", "hooks"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_statistics_are_those_of_the_unfolded_model(
    estimator: str, backend: str, layout: torch.memory_format
) -> None:
    """Settling passes, single frames, broken frames and changing batch sizes included."""
    arguments = {"estimator": ESTIMATORS[estimator], "backend": backend}
    stories = [Story(model, **arguments) for model in (FOLDED, MODEL)]
    order = ["source", "fog", "source", "night", "haze"]
    with torch.no_grad():
        for step in range(200):
            name, count = order[step // 20 % len(order)], (1, 8, 3)[step % 3]
            batch = world(name, step, count).contiguous(memory_format=layout)
            if step % 37 == 5:
                batch[-1, 0, 0, 0] = torch.nan
            outputs = [one.processor(batch, pts_seconds=step * 0.16) for one in stories]
            if step % 10 == 0 and step % 37 != 5:
                torch.testing.assert_close(*outputs, rtol=2e-3, atol=2e-3)
                same_state(*stories, streams=[None], tolerance=2e-3)
    assert stories[0].told() == stories[1].told()
    if estimator == "default":
        phases = [one.phase for one in stories[0].told() if isinstance(one, PhaseChanged)]
        assert {"resting", "following", "settling"} <= set(phases)
        layers = {one.name: one for one in stories[0].processor.describe().layers}
        assert layers["bn1"].kind == layers["bn1"].tap == "folded"
        assert layers["alone"].kind == "batchnorm"


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
@pytest.mark.parametrize("backend", ["auto", "hooks"])
def test_several_streams_move_outputs_frame_by_frame(backend: str, timing: Any) -> None:
    arguments = {"backend": backend, "timing": timing, "max_streams": 3}
    stories = [Story(model, **arguments) for model in (FOLDED, MODEL)]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for step in range(80):
            worlds = ["fog" if step > 40 else "source", "source", "night"]
            parts = [world(name, 10 * step + k, 4) for k, name in enumerate(worlds)]
            order = torch.randperm(12, generator=generator)
            batch, streams = torch.cat(parts)[order], [f"camera-{int(k) // 4}" for k in order]
            outputs = [
                one.processor(batch, streams=streams, pts_seconds=step * 0.16) for one in stories
            ]
            torch.testing.assert_close(*outputs, rtol=3e-3, atol=3e-3)
    same_state(*stories, streams=["camera-0", "camera-1", "camera-2"], tolerance=3e-3)
    assert stories[0].told() == stories[1].told()


def test_without_spatial_dimensions_only_means_move() -> None:
    plain = randomise(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    stories = [
        Story(model, estimator=sa.estimators.EMA(momentum=0.1)) for model in (sa.fold(plain), plain)
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            x = torch.randn(16, 6, generator=generator) * 2 + 1
            outputs = [one.processor(x) for one in stories]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    same_state(*stories, streams=[None], tolerance=1e-4)


def test_channels_without_a_factor_stay_at_the_source() -> None:
    model = copy.deepcopy(MODEL)
    with torch.no_grad():
        model.bn1.weight[[0, 5]] = 0.0
        model.bn1.weight[7] = 1e-9
    stories = [Story(one, estimator=sa.estimators.EMA(momentum=0.1)) for one in (
        sa.fold(model), model
    )]  # fmt: skip
    with torch.no_grad():
        for step in range(40):
            outputs = [one.processor(world("fog", step, 4)) for one in stories]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    (mine, its) = (one.processor.statistics() for one in stories)
    kept = [0, 5, 7]
    np.testing.assert_array_equal(mine["bn1"].mean[kept], model.bn1.running_mean[kept].double())
    np.testing.assert_array_equal(mine["bn1"].var[kept], model.bn1.running_var[kept].double())
    others = [channel for channel in range(12) if channel not in kept]
    for name in mine:
        which = others if name == "bn1" else slice(None)
        np.testing.assert_allclose(mine[name].mean[which], its[name].mean[which], atol=2e-3)


def test_weights_wait_for_their_turn_and_moments_take_that_into_account() -> None:
    """What is measured does not depend on how late statistics are folded in, at constant inputs."""
    plain = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    folded = sa.fold(plain)
    ema = sa.estimators.EMA(momentum=0.2)
    stories = [Story(folded, refold_every=every, estimator=ema) for every in (1, 4, 1000)]
    weights = []
    with torch.no_grad():
        for step in range(8):
            for one in stories:
                one.processor(world("fog", step, 2))
            weights.append([one.model[0].weight.clone() for one in stories])
    same_state(stories[0], stories[1], [None], 1e-5)
    same_state(stories[0], stories[2], [None], 1e-5)
    source = folded[0].weight
    for step, (always, fourth, never) in enumerate(weights):
        assert not torch.equal(always, source)
        assert torch.equal(fourth, source) == (step < 3)
        assert torch.equal(never, source)
    assert torch.equal(weights[3][0], weights[3][1]) or torch.allclose(*weights[3][:2], rtol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "hooks"])
def test_rollback_and_snapshots_take_effect_at_once(backend: str) -> None:
    """To the bit, where convolutions run as they are and not on packed weights."""
    ema = sa.estimators.EMA(momentum=0.2)
    story = Story(FOLDED, refold_every=1000, estimator=ema, backend=backend)
    tolerance = 0.0 if backend == "hooks" else 1e-5
    processor, probe = story.processor, world("haze", 0, 2)
    before = state_of(story.model)
    with torch.no_grad():
        frozen = copy.deepcopy(FOLDED)(probe)
        for step in range(4):
            processor(world("fog", step, 4))
        processor.snapshot("fog")
        statistics = processor.statistics()
        for step in range(4):
            processor(world("night", step, 4))
        processor.rollback("fog")
        baked = processor.adapted_model()
        processor.freeze()
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(processor(probe), baked(probe), **close)
        for name, moments in processor.statistics().items():
            assert torch.equal(moments.mean, statistics[name].mean)
        processor.rollback("source")
        torch.testing.assert_close(processor(probe), frozen, **close)
        processor.resume()
        for step in range(4):
            processor(world("night", step, 4))
        objects = dict(story.model.named_parameters()) | dict(story.model.named_buffers())
        processor.unwrap()
    assert same(before, state_of(story.model))
    for name, parameter in story.model.named_parameters():
        assert parameter is objects[name]
    assert all("forward" not in one.__dict__ for one in story.model.modules())


def test_in_shadow_mode_answers_are_the_folded_models_to_the_bit() -> None:
    story = Story(FOLDED, mode="shadow", shadow_every=2)
    frozen = copy.deepcopy(FOLDED)
    with torch.no_grad():
        for step in range(6):
            batch = world("fog", step, 4)
            assert torch.equal(story.processor(batch, pts_seconds=step * 0.16), frozen(batch))


def test_a_change_of_domain_is_folded_in_at_once() -> None:
    story = Story(FOLDED, refold_every=1000)
    with torch.no_grad():
        for step in range(40):
            batch = world("fog", step, 8)
            output = story.processor(batch, pts_seconds=step * 0.32)
    assert story.processor.phase() == "following"
    assert not torch.equal(story.model.conv1.weight, FOLDED.conv1.weight)
    with torch.no_grad():
        torch.testing.assert_close(output, story.processor.adapted_model()(batch), rtol=0.1, atol=1)


@pytest.mark.parametrize("streams", [1, 2])
def test_an_adapted_copy_is_plain_and_answers_the_same(streams: int) -> None:
    story = Story(FOLDED, max_streams=streams, estimator=sa.estimators.EMA(momentum=0.1))
    probe = world("haze", 0, 2)
    with torch.no_grad():
        for step in range(10):
            story.processor(world("fog", step, 4))
        story.processor.freeze()
        twin = story.processor.adapted_model()
        torch.testing.assert_close(twin(probe), story.processor(probe), rtol=1e-4, atol=1e-4)
    assert all("forward" not in one.__dict__ for one in twin.modules())
    again = sa.StreamProcessor(twin)
    again.unwrap()


def test_half_precision_follows_and_comes_back() -> None:
    story = Story(copy.deepcopy(FOLDED).bfloat16(), estimator=sa.estimators.EMA(momentum=0.1))
    exact = Story(FOLDED, estimator=sa.estimators.EMA(momentum=0.1))
    before = state_of(story.model)
    with torch.no_grad():
        for step in range(20):
            story.processor(world("fog", step, 4).bfloat16())
            exact.processor(world("fog", step, 4))
    same_state(story, exact, [None], 0.15)
    story.processor.unwrap()
    assert same(before, state_of(story.model))


def test_gradients_reach_inputs_while_weights_are_folded_anew() -> None:
    story = Story(FOLDED, estimator=sa.estimators.EMA(momentum=0.1))
    x = world("fog", 0, 2).requires_grad_()
    output = story.processor(x)
    story.processor(world("fog", 1, 2).requires_grad_())
    output.sum().backward()
    y = x.detach().requires_grad_()
    copy.deepcopy(FOLDED)(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)


def test_loaded_statistics_are_the_new_source() -> None:
    story = Story(FOLDED, estimator=sa.estimators.EMA(momentum=0.1))
    with torch.no_grad():
        for step in range(4):
            story.processor(world("fog", step, 4))
        changed = copy.deepcopy(FOLDED)
        for layer in changed.modules():
            if isinstance(layer, FoldedLayer):
                layer.running_mean += 0.5
                layer.refold()
        story.model.load_state_dict(changed.state_dict())
        probe = world("haze", 0, 2)
        torch.testing.assert_close(story.processor(probe), changed(probe), rtol=1e-5, atol=1e-5)
        story.processor.unwrap()
    assert same(state_of(story.model), changed.state_dict())


def test_a_profile_of_the_model_fits_its_folded_copy() -> None:
    profile = sa.calibrate(copy.deepcopy(MODEL), [world("source", k, 8) for k in range(40)])
    story = Story(FOLDED, profile=profile)
    assert story.processor.calibrated
    own = sa.calibrate(copy.deepcopy(FOLDED), [world("source", k, 8) for k in range(40)])
    np.testing.assert_allclose(own.settled, profile.settled, rtol=0.05)


def test_a_compiled_folded_model_is_adapted_too() -> None:
    model = copy.deepcopy(FOLDED)
    compiled = torch.compile(model, backend="eager")
    stories = [Story(FOLDED, estimator=sa.estimators.EMA(momentum=0.1)) for _ in range(1)]
    processor = sa.StreamProcessor(
        compiled, estimator=sa.estimators.EMA(momentum=0.1), alarms=None, refold_every=1
    )
    with torch.no_grad():
        for step in range(4):
            outputs = [
                processor(world("fog", step, 2)),
                stories[0].processor(world("fog", step, 2)),
            ]
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for name, moments in processor.statistics().items():
        torch.testing.assert_close(
            moments.mean, stories[0].processor.statistics()[name].mean, rtol=1e-3, atol=1e-3
        )


def test_a_model_copied_in_inference_mode_is_adapted_and_given_back() -> None:
    """Its parameters and buffers are inference tensors."""
    with torch.inference_mode():
        model = copy.deepcopy(FOLDED)
        before = state_of(model)
        ema = sa.estimators.EMA(momentum=0.1)
        stories = [Story(FOLDED, estimator=ema)]
        processor = sa.StreamProcessor(model, estimator=ema, alarms=None, refold_every=1)
        for step in range(4):
            batch = world("fog", step, 2)
            outputs = [processor(batch), stories[0].processor(batch)]
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
        processor.unwrap()
        assert same(before, state_of(model))


@pytest.mark.parametrize("method", ["one_pass", "layerwise"])
def test_offline_adaptation_of_a_folded_model(method: Any) -> None:
    batches = [world("fog", k, 8) for k in range(6)]
    adapted = [sa.adabn(copy.deepcopy(one), batches, method=method) for one in (FOLDED, MODEL)]
    with torch.no_grad():
        outputs = [one(world("fog", 99, 4)) for one in adapted]
    torch.testing.assert_close(*outputs, rtol=2e-3, atol=2e-3)


def test_doctor_knows_folded_layers() -> None:
    report = examine_model(FOLDED)
    assert not report.refused and not report.limits
    found = {one.name: one for one in report.layers}
    assert found["bn1"].kind == found["bn1"].tap == "folded"
    assert found["bn1"].state == "adaptable" and found["bn1"].channels == 12
    assert found["alone"].kind == "batchnorm"


class Block(nn.Module):
    """A convolution and its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Twice(nn.Module):
    """Calls it twice, the second time on smaller pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x)[..., ::2]).mean((2, 3))


@pytest.mark.parametrize("backend", ["auto", "hooks"])
def test_a_layer_that_is_called_twice_shows_both(backend: Any) -> None:
    model = randomise(Twice())
    ema = sa.estimators.EMA(momentum=0.1)
    stories = [Story(one, backend=backend, estimator=ema) for one in (sa.fold(model), model)]
    with torch.no_grad():
        for step in range(10):
            outputs = [one.processor(world("fog", step, 3)) for one in stories]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    same_state(*stories, streams=[None], tolerance=1e-3)
