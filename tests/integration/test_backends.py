"""Whole streams on compiled kernels and on PyTorch's: the same story, within rounding."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.errors import ConfigurationError
from streamadapt.events import (
    DriftDetected,
    Event,
    FramesRejected,
    KernelsUnavailable,
    PhaseChanged,
    SettlingPassed,
    StepCompleted,
    UpdateRefused,
)
from streamadapt.ops import compiled
from streamadapt.ops.compiled import Found, library
from tests.models import randomise

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(
        compiled.find().kernels is None, reason=f"kernels: {compiled.find().problem}"
    ),
]

WORLDS = {"source": (1.0, 0.0), "fog": (0.4, 1.2), "night": (0.5, -1.5), "haze": (0.8, 0.3)}


class Net(nn.Module):
    """Chains of every kind, and a BatchNorm without spatial dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.side = nn.Sequential(nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12))
        self.conv3, self.bn3 = nn.Conv2d(12, 40, 3, stride=2), nn.BatchNorm2d(40)
        self.bn4, self.head = nn.BatchNorm1d(40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + self.side(x))
        x = nn.functional.relu6(self.bn3(self.conv3(x)))
        return self.head(self.bn4(x.mean((2, 3))))


def net() -> nn.Module:
    model = randomise(Net())
    with torch.no_grad():
        model.train()
        for seed in range(60):
            model(world("source", seed, 16))
    return model.eval()


def world(name: str, seed: int, count: int) -> Tensor:
    scale, offset = WORLDS[name]
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, 3, 18, 18, generator=generator) + offset


MODEL = net()
EPS = 1e-5


class Story:
    """A processor and what it told."""

    def __init__(self, backend: Any, **arguments: Any) -> None:
        self.events: list[Event] = []
        arguments = {"alarms": None, "class_scores": False, **arguments}
        self.processor = sa.StreamProcessor(
            copy.deepcopy(MODEL), backend=backend, on_event=self.events.append, **arguments
        )

    def told(self) -> list[Any]:
        """All that must be the same: not the times, not rounded figures."""
        kinds = PhaseChanged | SettlingPassed | FramesRejected | UpdateRefused | DriftDetected
        found: list[Any] = [one for one in self.events if isinstance(one, kinds)]
        return [one for one in found if not isinstance(one, DriftDetected)] + [
            one.outcome for one in self.events if isinstance(one, StepCompleted)
        ]


def same_state(one: Story, other: Story, streams: list[str | None]) -> None:
    for stream in streams:
        a, b = one.processor.statistics(stream), other.processor.statistics(stream)
        for name in a:
            var, other_var = a[name].var + EPS, b[name].var + EPS
            assert float(((a[name].mean - b[name].mean).abs() / var.sqrt()).max()) < 2e-4, name
            assert float((var / other_var).log().abs().max()) < 5e-4, name


ESTIMATORS = {
    "default": sa.estimators.Restarting(),
    "EMA": sa.estimators.EMA(momentum=0.05),
    "Welford": sa.estimators.Welford(),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_500_batches(estimator: str, layout: torch.memory_format) -> None:
    stories = [Story(backend, estimator=ESTIMATORS[estimator]) for backend in ("auto", "hooks")]
    order = ["source", "fog", "source", "night", "haze"]
    with torch.no_grad():
        for step in range(500):
            name, count = order[step // 20 % len(order)], (1, 8, 3)[step % 3]
            batch = world(name, step, count).contiguous(memory_format=layout)
            if step % 37 == 5:
                batch[-1, 0, 0, 0] = torch.nan
            outputs = [one.processor(batch, pts_seconds=step * 0.16) for one in stories]
            if step % 10 == 0 and step % 37 != 5:
                torch.testing.assert_close(*outputs, rtol=2e-3, atol=2e-3)
                same_state(*stories, streams=[None])
    assert stories[0].told() == stories[1].told()
    assert stories[0].processor.describe().backend.startswith("compiled")
    if estimator == "default":
        phases = [one.phase for one in stories[0].told() if isinstance(one, PhaseChanged)]
        assert {"resting", "following", "settling"} <= set(phases)


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
def test_mixed_batches_of_several_cameras(timing: Any) -> None:
    stories = [
        Story(backend, max_streams=4, timing=timing, guard=sa.Guard(share=0.0))
        for backend in ("compiled", "hooks")
    ]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for step in range(120):
            worlds = ["fog" if step > 40 else "source", "source", "night"]
            parts = [world(name, 10 * step + k, 4) for k, name in enumerate(worlds)]
            order = torch.randperm(12, generator=generator)
            batch = torch.cat(parts)[order]
            streams = [f"camera-{int(k) // 4}" for k in order]
            for one in stories:
                one.processor(batch, streams=streams, pts_seconds=step * 0.16)
    same_state(*stories, streams=["camera-0", "camera-1", "camera-2"])
    assert stories[0].told() == stories[1].told()
    assert any(isinstance(one, PhaseChanged) for one in stories[0].told())


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
def test_frames_of_several_worlds_in_one_stream(timing: Any) -> None:
    """Frames that are unlike their row are normalised with more of their own statistics."""
    stories = [Story(backend, timing=timing) for backend in ("compiled", "hooks")]
    with torch.no_grad():
        for step in range(60):
            parts = [world(name, 10 * step + k, 2) for k, name in enumerate(WORLDS)]
            outputs = [one.processor(torch.cat(parts), pts_seconds=step * 0.32) for one in stories]
            torch.testing.assert_close(*outputs, rtol=2e-3, atol=2e-3)
    same_state(*stories, streams=[None])


def test_at_rest_answers_are_the_frozen_models_to_the_bit() -> None:
    frozen = copy.deepcopy(MODEL)
    for arguments in ({}, {"max_streams": 3}):
        story = Story("compiled", **arguments)
        with torch.no_grad():
            for step in range(30):
                batch = world("source", step, 8)
                output = story.processor(batch, streams="one", pts_seconds=step * 0.32)
                if story.processor.phase("one") == "resting" and step > 15:
                    assert torch.equal(output, frozen(batch))
        assert story.processor.phase("one") == "resting"


def test_padding_and_held_rows() -> None:
    stories = [Story(backend, max_streams=2) for backend in ("compiled", "hooks")]
    with torch.no_grad():
        for step in range(40):
            batch = world("fog", step, 8)
            batch[6:] = 0.0
            streams = ["a", "b"] * 3
            for one in stories:
                one.processor(batch, streams=streams, valid=6, pts_seconds=step * 0.24)
    same_state(*stories, streams=["a", "b"])
    assert stories[0].told() == stories[1].told()


def test_layers_that_do_not_run_keep_their_statistics() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.extra, self.uses = copy.deepcopy(MODEL), nn.BatchNorm1d(5), True

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return self.extra(y) if self.uses else y

    statistics = []
    for backend in ("compiled", "hooks"):
        model = Sometimes().eval()
        with torch.no_grad(), sa.StreamProcessor(model, backend=backend, alarms=None) as processor:
            for step in range(30):
                model.uses = step % 2 == 0
                processor(world("fog", step, 8), pts_seconds=step * 0.32)
            statistics.append(processor.statistics())
    for name, moments in statistics[0].items():
        np.testing.assert_allclose(moments.mean, statistics[1][name].mean, rtol=1e-3, atol=1e-3)


def test_without_kernels_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Found:
        return Found(None, "not built: install a C compiler")

    monkeypatch.setattr("streamadapt.backends.find", none)
    story = Story("auto")
    with torch.no_grad():
        for step in range(3):
            story.processor(world("source", step, 4))
    (told,) = [one for one in story.events if isinstance(one, KernelsUnavailable)]
    assert "install a C compiler" in told.reason
    assert story.processor.describe().backend == "hooks"
    with pytest.raises(ConfigurationError, match="install a C compiler"):
        Story("compiled")
    assert not [one for one in Story("hooks").events if isinstance(one, KernelsUnavailable)]


def test_a_stale_or_broken_library_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def found() -> Found:
        library.find.cache_clear()
        return library.find()

    try:
        with monkeypatch.context() as patched:
            patched.setattr(library.build, "digest", lambda: "of other sources")
            assert "stale" in str(found().problem)
        with monkeypatch.context() as patched:
            broken = tmp_path / "libstreamadapt.so"
            broken.write_bytes(b"no library")
            patched.setattr(library.build, "LIBRARY", broken)
            assert "cannot be loaded" in str(found().problem)
            broken.unlink()
            assert "not built" in str(found().problem)
        with monkeypatch.context() as patched:
            patched.setenv("STREAMADAPT_KERNELS", "off")
            assert "switched off" in str(found().problem)
    finally:
        library.find.cache_clear()
    assert library.find().kernels is not None
