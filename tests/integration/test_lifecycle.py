"""Wrapping, unwrapping, and everything that can be done to a model in between."""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import safetensors.torch
import torch
from torch import nn

import streamadapt as sa
from tests.models import (
    ActivatedBatchNorm,
    FrozenBatchNorm,
    Residual,
    frames,
    randomise,
    residual,
    same,
    state_of,
)

MODES = {
    "grad": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
@pytest.mark.parametrize("max_streams", [1, 3])
@pytest.mark.parametrize("step", MODES)
@pytest.mark.parametrize("construct", MODES)
def test_any_mix_of_grad_modes_adapts_and_unwraps(construct, step, max_streams, timing):
    model = residual()
    source, originals = state_of(model), [model.bn1.running_mean, model.bn3.running_var]
    with MODES[construct]():
        processor = sa.StreamProcessor(
            model, estimator=sa.estimators.EMA(momentum=0.3), timing=timing, max_streams=max_streams
        )
    with MODES[step]():
        for seed in range(3):
            processor(frames(4, seed=seed, shift=2.0))
    for other in MODES.values():
        with other():
            processor(frames(2, seed=9, shift=2.0))
    assert processor.event_counts["StepCompleted"] == 6
    assert "UpdateFailed" not in processor.event_counts
    assert not processor._runtime.engine.bank.data.is_inference()
    assert processor.drift().overall > 0.05
    processor.unwrap()
    assert same(state_of(model), source)
    assert model.bn1.running_mean is originals[0]
    assert model.bn3.running_var is originals[1]
    assert "forward" not in model.bn1.__dict__
    assert not model.bn1._state_dict_hooks and not model.bn1._load_state_dict_post_hooks


@pytest.mark.parametrize("max_streams", [1, 2])
@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
def test_backward_through_a_step_is_right(timing, max_streams):
    model = residual()
    with sa.StreamProcessor(
        model, estimator=sa.estimators.EMA(0.3), timing=timing, max_streams=max_streams
    ) as processor:
        x = frames(4, shift=1.0)
        processor(x)
        plain = processor.adapted_model() if timing == "lagged" else None
        leaf = x.clone().requires_grad_()
        outputs = [processor(leaf), processor(frames(4, seed=3))]
        sum(output.square().sum() for output in outputs).backward()
        if plain is not None:
            other = x.clone().requires_grad_()
            plain(other).square().sum().backward()
            torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-3, atol=1e-4)
        assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().sum() > 0


def test_the_model_reads_the_bank_itself():
    model = residual()
    estimator = sa.estimators.EMA()
    with sa.StreamProcessor(model, estimator=estimator) as processor, torch.inference_mode():
        processor(frames(4, shift=3.0))
        assert processor.drift().overall > 0.0
        adapted = processor.statistics()["bn2"]
        torch.testing.assert_close(model.bn2.running_mean.double(), adapted.mean)
        bank = processor._runtime.engine.bank.data.untyped_storage().data_ptr()
        assert model.bn2.running_mean.untyped_storage().data_ptr() == bank


def test_training_mode_is_refused_at_wrap_and_before_a_step():
    model = residual()
    model.bn2.train()
    with pytest.raises(sa.errors.ModelStateError, match="'bn2' is in training mode"):
        sa.StreamProcessor(model)
    model.eval()
    with sa.StreamProcessor(model) as processor:
        model.train()
        before = processor.statistics()["bn1"].mean
        with pytest.raises(sa.errors.ModelStateError, match=r"model.eval\(\)"):
            processor(frames(2))
        assert torch.equal(processor.statistics()["bn1"].mean, before)
        model.eval()
        processor(frames(2))


def test_wrapping_twice_is_refused_and_again_after_unwrap_is_fine():
    model = residual()
    first = sa.StreamProcessor(model)
    with pytest.raises(sa.errors.UnsupportedModelError, match="wrapped already"):
        sa.StreamProcessor(model)
    first.unwrap()
    first.unwrap()
    with pytest.raises(sa.errors.ModelStateError, match="unwrapped"):
        first(frames(1))
    sa.StreamProcessor(model).unwrap()


def test_unwrap_happens_when_the_block_raises():
    model = residual()
    source = state_of(model)
    estimator = sa.estimators.EMA()
    with pytest.raises(KeyError), sa.StreamProcessor(model, estimator=estimator) as processor:
        processor(frames(3, shift=2.0))
        assert not same(state_of(model), source)
        raise KeyError
    assert same(state_of(model), source)


def test_state_dict_is_compact_and_true(tmp_path):
    model = residual()
    with sa.StreamProcessor(model, estimator=sa.estimators.EMA()) as processor:
        processor(frames(4, shift=3.0))
        state = model.state_dict()
        held = state["bn1.running_mean"]
        torch.testing.assert_close(held.double(), processor.statistics()["bn1"].mean)
        assert held.untyped_storage().nbytes() == held.numel() * 4
        safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
        buffer = io.BytesIO()
        torch.save(processor.adapted_model(), buffer)
        parameters = sum(p.numel() for p in model.parameters()) * 4
        assert buffer.tell() < 2 * parameters + 20_000


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_inert(how):
    model = residual()
    with sa.StreamProcessor(model, estimator=sa.estimators.EMA(0.5)) as processor:
        processor(frames(4, shift=3.0))
        if how == "deepcopy":
            twin = copy.deepcopy(model)
        elif how == "pickle":
            twin = pickle.loads(pickle.dumps(model))
        else:
            buffer = io.BytesIO()
            torch.save(model, buffer)
            buffer.seek(0)
            twin = torch.load(buffer, weights_only=False)
        x = frames(4, seed=5, shift=-3.0)
        with torch.no_grad():
            assert torch.equal(twin(x), model(x))
        mine, theirs = state_of(model), state_of(twin)
        twin(x)
        assert same(state_of(model), mine) and same(state_of(twin), theirs)
        processor(x)
        assert same(state_of(twin), theirs)
        assert not same(state_of(model), mine)
        twin.load_state_dict(theirs)
        assert "SourceReplaced" not in processor.event_counts
    with sa.StreamProcessor(twin) as again:
        again(x)


def test_running_the_model_beside_the_processor_adapts_nothing():
    model = residual()
    with sa.StreamProcessor(model, estimator=sa.estimators.EMA()) as processor:
        processor(frames(2))
        before = processor.statistics()
        model(frames(2, shift=5.0))
        after = processor.statistics()
        assert all(torch.equal(before[k].mean, after[k].mean) for k in before)


@pytest.mark.parametrize("part", ["model", "layer"])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("max_streams", [1, 2])
def test_load_state_dict_becomes_the_new_source(max_streams, assign, part):
    model, other = residual(0), residual(7)
    events = []
    processor = sa.StreamProcessor(
        model, estimator=sa.estimators.EMA(), max_streams=max_streams, on_event=events.append
    )
    processor(frames(4, shift=3.0))
    processor.snapshot("before")
    if part == "model":
        model.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    else:
        model.bn2.load_state_dict(copy.deepcopy(other.bn2.state_dict()), assign=assign)
    loaded = other.bn2.running_mean.clone()
    processor(frames(1)[:0])
    replaced = [event for event in events if isinstance(event, sa.events.SourceReplaced)]
    assert len(replaced) == 1 and replaced[0].snapshots_dropped == 1
    torch.testing.assert_close(processor.statistics()["bn2"].mean.float(), loaded)
    assert processor.drift().overall == 0.0
    with pytest.raises(sa.errors.SnapshotError):
        processor.rollback("before")
    processor(frames(4, shift=3.0))
    assert processor.drift().overall > 0.0
    processor.unwrap()
    assert torch.equal(model.bn2.running_mean, loaded)


@pytest.mark.parametrize("max_streams", [1, 2])
def test_a_change_of_dtype_is_followed(max_streams):
    model = residual()
    source = state_of(model)
    events = []
    processor = sa.StreamProcessor(
        model, estimator=sa.estimators.EMA(0.5), max_streams=max_streams, on_event=events.append
    )
    processor(frames(4, shift=2.0))
    before = processor.drift().overall
    model.bfloat16()
    processor(frames(4, shift=2.0).bfloat16())
    rebound = [event for event in events if isinstance(event, sa.events.BuffersRebound)]
    assert rebound[0].dtypes == ("bfloat16",)
    assert processor.drift().overall >= before * 0.9
    if max_streams == 1:
        mean = processor.statistics()["bn1"].mean
        torch.testing.assert_close(model.bn1.running_mean, mean.bfloat16())
    model.float()
    processor(frames(4, shift=2.0))
    processor.unwrap()
    assert model.bn1.running_mean.dtype == torch.float32
    torch.testing.assert_close(
        model.bn1.running_mean, source["bn1.running_mean"], rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("max_streams", [1, 2])
@pytest.mark.parametrize("estimator", [sa.estimators.EMA(), sa.estimators.Restarting()])
def test_models_of_other_dtypes_adapt_and_unwrap_exactly(estimator, dtype, max_streams):
    model = residual().to(dtype)
    source = state_of(model)
    x = frames(4, shift=2.0).to(dtype)
    with sa.StreamProcessor(model, estimator=estimator, max_streams=max_streams) as processor:
        for _ in range(5):
            assert processor(x).dtype == dtype
        assert not {"UpdateFailed", "SettlingFailed"} & processor.event_counts.keys()
        assert processor.drift().overall > 0
        assert model.bn1.running_mean.dtype == dtype
    assert same(state_of(model), source)


def test_values_assigned_from_outside_are_the_new_source():
    model = residual()
    with sa.StreamProcessor(model) as processor:
        processor(frames(4, shift=2.0))
        model.bn1.running_mean = torch.full((8,), 0.25)
        processor.snapshot()
        assert processor.event_counts["SourceReplaced"] == 1
        assert processor.statistics()["bn1"].mean.tolist() == [0.25] * 8


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
@pytest.mark.parametrize("make", [lambda: ActivatedBatchNorm(3), lambda: FrozenBatchNorm(3)])
def test_subclasses_and_frozen_layers_adapt_in_every_timing(make, timing):
    torch.manual_seed(0)
    model = nn.Sequential(randomise(nn.Sequential(make())), nn.Flatten())
    with sa.StreamProcessor(
        model, estimator=sa.estimators.EMA(1.0), timing=timing, max_streams=2
    ) as processor:
        x = frames(6, shift=2.0)
        processor(x, streams=["a", "a", "a", "b", "b", "b"])
        statistics = processor.statistics("b")["0.0"]
        torch.testing.assert_close(statistics.mean, x[3:].double().mean(dim=(0, 2, 3)))
        plain, output = processor.adapted_model("b"), processor(x[3:], streams="b")
        torch.testing.assert_close(plain(x[3:]), output, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_an_affine_normalisation_is_refused_per_frame():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * self.running_var.sum()

    ema = sa.estimators.EMA()
    sa.StreamProcessor(nn.Sequential(Odd(3)).eval(), estimator=ema).unwrap()
    with pytest.raises(sa.errors.UnsupportedModelError, match=r"not activation\(batch_norm\(x\)\)"):
        sa.StreamProcessor(nn.Sequential(Odd(3)).eval(), estimator=ema, max_streams=2)


def test_a_layer_that_cannot_be_settled_is_refused_before_the_model_is_touched():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * self.running_var.sum()

    model = nn.Sequential(Odd(3), nn.BatchNorm2d(3)).eval()
    buffers = list(model.buffers())
    with pytest.raises(sa.errors.UnsupportedModelError) as caught:
        sa.StreamProcessor(model)
    assert str(caught.value) == (
        "Layer '0' (Odd) is not activation(batch_norm(x)): its output depends on the statistics "
        "in another way, so it cannot be normalised frame by frame, nor be measured in a settling "
        "pass. Leave it out with `layers=`, or use one stream in lagged timing and "
        "`estimator=EMA()`."
    )
    assert all(held is before for held, before in zip(model.buffers(), buffers, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())
    # Both remedies help.
    sa.StreamProcessor(model, estimator=sa.estimators.EMA()).unwrap()
    with sa.StreamProcessor(model, layers=["1"]) as processor:
        processor(frames(4, shift=2.0))
        assert processor.event_counts["SettlingPassed"] == 1


def test_a_forward_put_on_the_instance_before_survives():
    model = residual()
    calls = []
    inner = model.bn1.forward

    def mine(x):
        calls.append(x.shape)
        return inner(x)

    model.bn1.forward = mine
    with sa.StreamProcessor(model, estimator=sa.estimators.EMA()) as processor:
        processor(frames(2))
    assert len(calls) == 1 and model.bn1.forward is mine


def test_a_model_without_gradients_or_parameters_works():
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False)).eval()
    with sa.StreamProcessor(model, max_streams=2) as processor:
        processor(frames(2), streams=["a", "b"])
        assert set(processor.streams) == {"a", "b"}


def test_shadowed_modules_attribute():
    class Shadow(Residual):
        def __init__(self):
            super().__init__()
            self.modules = []

    with sa.StreamProcessor(randomise(Shadow())) as processor:
        processor(frames(2))
        assert len(processor.describe().layers) == 3
