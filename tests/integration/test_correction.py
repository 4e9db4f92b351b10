"""Frames unlike their stream: what they are answered with, and what stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.estimators import Restarting
from streamadapt.testing import frames, tiny_model


def home() -> nn.Module:
    """A model whose statistics are those of `frames`."""
    return sa.adabn(tiny_model(), [frames(512, seed=99, size=16)], method="layerwise")


def calm(count: int, seed: int) -> Tensor:
    return frames(count, seed=seed, size=16)


def away(count: int, seed: int) -> Tensor:
    return frames(count, seed=seed, size=16, gain=0.3, offset=4.0)


def resting(**kwargs: Any) -> sa.StreamProcessor:
    """A processor that has settled at home."""
    processor = sa.StreamProcessor(home(), **kwargs)
    streams = {"streams": "one"} if kwargs.get("max_streams") else {}
    with torch.no_grad():
        for seed in range(8):
            processor(calm(16, seed), pts_seconds=seed * 0.64, **streams)
    return processor


def answered(processor: sa.StreamProcessor, batch: Tensor, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = processor(batch, pts_seconds=100.0, **kwargs)
    return output


def test_the_first_frames_of_a_new_world_are_answered_better() -> None:
    batch, off = away(32, 7), {}
    with torch.no_grad():
        wanted = sa.adabn(home(), [away(512, 98)], method="layerwise")(batch)
        off["frozen"] = float((home()(batch) - wanted).norm())
    for depth in (0.0, 1 / 3):
        with resting(estimator=Restarting(own_depth=depth)) as processor:
            off[str(depth)] = float((answered(processor, batch) - wanted).norm())
    assert off["0.0"] == pytest.approx(off["frozen"], rel=1e-5)
    assert off[str(1 / 3)] < 0.5 * off["frozen"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_frames_of_several_worlds_in_one_batch_are_each_answered_by_their_own(
    layout: torch.memory_format,
) -> None:
    mixed = torch.cat([calm(8, 50), away(8, 51)]).to(memory_format=layout)
    with resting() as processor, torch.no_grad():
        output = answered(processor, mixed)
        frozen = home()(mixed)
        assert torch.equal(output[:8], frozen[:8])
        wanted = sa.adabn(home(), [away(512, 98)], method="layerwise")(mixed)
        assert (output[8:] - wanted[8:]).norm() < 0.5 * (frozen[8:] - wanted[8:]).norm()


def test_a_frames_answer_does_not_depend_on_its_batch_mates() -> None:
    frame = away(1, 60)
    outputs = []
    for mates in (calm(7, 61), away(7, 62), 1e4 * calm(7, 63), torch.zeros(7, 3, 16, 16)):
        with resting() as processor:
            outputs.append(answered(processor, torch.cat([mates, frame]))[-1])
    for other in outputs[1:]:
        assert torch.equal(other, outputs[0])


def test_a_frozen_processor_corrects_as_before_and_learns_nothing() -> None:
    with resting() as processor:
        processor.freeze()
        before = processor.statistics()
        first, second = (answered(processor, away(8, 70)) for _ in range(2))
        assert torch.equal(first, second)
        with torch.no_grad():
            assert not torch.allclose(first, home()(away(8, 70)))
        for name, moments in processor.statistics().items():
            assert torch.equal(moments.mean, before[name].mean)


def test_every_stream_is_corrected_against_its_own_row() -> None:
    with resting(max_streams=2) as processor:
        for seed in range(12):  # the second camera lives in the other world
            answered(processor, away(16, seed), streams="two")
        both = torch.cat([away(6, 80), away(6, 80)])
        output = answered(processor, both, streams=["one"] * 6 + ["two"] * 6)
    with resting() as alone:
        torch.testing.assert_close(output[:6], answered(alone, both[:6]), rtol=1e-4, atol=1e-4)
    with resting(max_streams=2, estimator=Restarting(own_depth=0.0)) as plain:
        for seed in range(12):
            answered(plain, away(16, seed), streams="two")
        settled = answered(plain, both, streams=["one"] * 6 + ["two"] * 6)[6:]
    # At home in its world: hardly a frame there is unlike the row.
    assert (output[6:] - settled).norm() < 0.2 * settled.norm()


def test_frames_that_are_not_finite_take_no_one_with_them() -> None:
    batch = away(8, 90)
    with resting() as processor:
        clean = answered(processor, batch)
    batch[3, 0, 0, 0] = float("nan")
    with resting() as processor:
        output = answered(processor, batch)
        assert processor.event_counts["FramesRejected"] == 1
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(output[others], clean[others])


def test_layers_with_few_positions_are_left_alone() -> None:
    model = sa.adabn(tiny_model(), [frames(512, seed=99, size=4)], method="layerwise")
    frozen, batch = copy.deepcopy(model), frames(8, size=4, offset=9.0)
    with sa.StreamProcessor(model) as processor, torch.no_grad():
        processor.freeze()
        assert torch.equal(processor(batch), frozen(batch))


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_is_corrected_as_well(timing: Any, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(home(), backend=backend, fullgraph=True)
    with (
        torch.no_grad(),
        sa.StreamProcessor(compiled, timing=timing) as processor,
        sa.StreamProcessor(home(), timing=timing) as reference,
    ):
        for step in range(12):
            batch = calm(16, step) if step < 8 else torch.cat([calm(8, step), away(8, step)])
            torch.testing.assert_close(
                processor(batch, pts_seconds=step * 0.64),
                reference(batch, pts_seconds=step * 0.64),
                rtol=1e-4,
                atol=1e-4,
            )


def test_under_autograd_the_correction_is_a_constant() -> None:
    with resting() as processor:
        batch = away(4, 5).requires_grad_(True)
        processor(batch, pts_seconds=100.0).sum().backward()
        assert batch.grad is not None and torch.isfinite(batch.grad).all()
