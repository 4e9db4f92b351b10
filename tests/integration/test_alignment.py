"""CORAL inside the processor: its map, its state, and what must not change because of it."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import streamadapt as sa
from streamadapt.alignment import Coral
from streamadapt.alignment.roots import newton_schulz
from tests.models import Residual, frames, randomise, residual, same, state_of
from tests.unit.alignment import numpy_coral

FROZEN = sa.estimators.Frozen


def calibrated(model=None, **settings):
    """The source side of the small network, with memory short enough for a test."""
    settings = {"half_life_frames": 12.0, "refresh_frames": 8, **settings}
    source = [frames(60, seed=seed) for seed in range(100, 103)]
    return Coral.calibrate(residual() if model is None else model, source, **settings)


def wrapped(coral=None, **options):
    """A processor over a new small network; CORAL alone unless an estimator is given."""
    options = {"estimator": FROZEN(), **options}
    return sa.StreamProcessor(
        residual(), alignment=calibrated() if coral is None else coral, **options
    )


def everything(processor, stream=None):
    """All state of a stream, as float64 tensors."""
    bank, row = processor._runtime.engine.bank, processor._runtime.row(stream)
    saved = bank.capture([row])
    aligned = saved.companion
    waiting = torch.tensor(aligned.waiting)
    parts = [saved.data, saved.tallies, aligned.mean, aligned.covariance, aligned.excess, waiting]
    return torch.cat([part.flatten().double() for part in parts])


def pooled(x):
    """The features of the frozen small network, by its parts."""
    model = residual()
    y = torch.relu(model.bn1(model.conv1(x)))
    y = torch.relu(model.bn2(model.conv2(y)) + model.bn3(model.conv3(y)))
    return y.mean(dim=(2, 3)).detach().double().numpy()


def head_of(features):
    """The head's output for features, float64."""
    head = residual().head
    weight, bias = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    return features @ weight.T + bias


class Streaming:
    """The online rule in NumPy, for one stream."""

    def __init__(self, coral):
        self.coral = coral
        self.source = (coral.mean.numpy(), coral.covariance.numpy())
        self.target = self.source
        self.map_covariance, self.waiting = self.source[1], 0

    def output(self, features):
        target = (self.target[0], self.map_covariance)
        coral = self.coral
        return head_of(
            numpy_coral.aligned(
                features,
                self.source,
                target,
                ridge=coral.regularisation,
                align_mean=coral.align_mean,
            )
        )

    def update(self, features, offered=None):
        weight = 1 - 2 ** (-len(features) / self.coral.half_life_frames)
        self.target = numpy_coral.blend(self.target, numpy_coral.moments(features), weight)
        self.waiting += len(features) if offered is None else offered
        if self.waiting >= self.coral.refresh_frames:
            self.map_covariance, self.waiting = self.target[1], 0


@pytest.mark.parametrize("options", [{}, {"max_streams": 3}, {"timing": "synchronous"}])
@pytest.mark.parametrize("align_mean", [True, False])
@pytest.mark.parametrize("ridge", [1.0, 0.01])
def test_outputs_and_state_are_the_formula(options, align_mean, ridge):
    coral = calibrated(regularisation=ridge, align_mean=align_mean)
    reference, processor = Streaming(coral), wrapped(coral, **options)
    with processor, torch.no_grad():
        for seed, count in enumerate([4, 1, 7, 5, 16, 1, 1, 3, 9]):
            x = frames(count, seed=seed, shift=0.3 * seed, scale=1 + 0.1 * seed)
            features = pooled(x)
            wanted = reference.output(features)
            np.testing.assert_allclose(processor(x), wanted, rtol=1e-3, atol=2e-4)
            reference.update(features)
            found = processor.feature_moments()
            np.testing.assert_allclose(found.mean, reference.target[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found.covariance, reference.target[1], rtol=1e-4, atol=1e-6)
        assert found.count == 47


def test_the_iteration_of_the_gpu_gives_the_same_maps(monkeypatch):
    coral, x = calibrated(regularisation=0.01), [frames(8, seed=i, shift=1.0) for i in range(5)]
    by_eigenvalues, iterated = wrapped(coral), wrapped(coral)
    wanted = [by_eigenvalues(batch) for batch in x]
    monkeypatch.setattr("streamadapt.alignment.rows.inverse_root", newton_schulz)
    for batch, output in zip(x, wanted, strict=True):
        torch.testing.assert_close(iterated(batch), output, rtol=1e-5, atol=1e-5)


def test_a_map_that_does_not_converge_refuses_the_step(monkeypatch):
    processor = wrapped(estimator=sa.estimators.EMA(), max_streams=2)
    processor(frames(2), streams=["a", "b"])
    before = everything(processor, "a")[:-1]

    def diverged(matrix, *, ridge, steps):
        return matrix * torch.nan

    monkeypatch.setattr("streamadapt.alignment.rows.inverse_root", diverged)
    processor(frames(9), streams=["a"] * 8 + ["b"])
    assert processor.event_counts["UpdateRefused"] == 1
    assert torch.equal(everything(processor, "a")[:-1], before)


def test_a_head_called_by_name_of_its_argument():
    class Named(Residual):
        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = torch.relu(self.bn2(self.conv2(x)) + self.bn3(self.conv3(x)))
            return self.head(input=x.mean(dim=(2, 3)))

    model, x = randomise(Named()), frames(9, shift=1.0)
    with (
        sa.StreamProcessor(model, estimator=FROZEN(), alignment=calibrated(model)) as processor,
        wrapped() as plain,
    ):
        for _ in range(3):
            torch.testing.assert_close(processor(x), plain(x))


@pytest.mark.parametrize("options", [{}, {"max_streams": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_first_outputs_are_the_models_to_the_bit(options, dtype):
    coral, model = calibrated(), residual().to(dtype)
    x = frames(5, shift=3.0).to(dtype)
    with torch.no_grad():
        expected = model(x)
        with sa.StreamProcessor(model, estimator=FROZEN(), alignment=coral, **options) as processor:
            first = processor(x)
            assert torch.equal(first, expected) and first.dtype == dtype
            processor(x)
            assert not torch.equal(processor(x), expected)


def test_on_a_stationary_target_aligned_features_have_the_sources_moments():
    model = residual()
    model.head = nn.Linear(8, 8, bias=False)
    model.head.weight.data = torch.eye(8)
    coral = calibrated(model, regularisation=1e-6, half_life_frames=1.0, refresh_frames=1)
    x = frames(64, seed=3, shift=0.8, scale=1.5)
    with sa.StreamProcessor(model, estimator=FROZEN(), alignment=coral) as processor:
        for _ in range(3):
            output = processor(x).detach().double().numpy()
    mean, covariance = numpy_coral.moments(output)
    wanted = coral.covariance.numpy()
    np.testing.assert_allclose(mean, coral.mean.numpy(), atol=1e-4)
    np.testing.assert_allclose(covariance, wanted, atol=5e-3 * wanted.max())


@pytest.mark.parametrize("estimator", [FROZEN(), sa.estimators.EMA(0.2), sa.estimators.Welford()])
@pytest.mark.parametrize("max_streams", [1, 2])
def test_the_baked_model_answers_as_the_next_step(estimator, max_streams):
    processor = wrapped(estimator=estimator, max_streams=max_streams)
    with processor, torch.no_grad():
        for seed in range(4):
            x = frames(6, seed=seed, shift=1.5)
            plain = processor.adapted_model()
            torch.testing.assert_close(processor(x), plain(x), rtol=1e-4, atol=1e-4)
        assert plain.state_dict().keys() == residual().state_dict().keys()
        assert "forward" not in plain.head.__dict__
        alone = sa.adabn(plain, [frames(4)])
        assert not torch.equal(alone.head.weight, residual().head.weight)


def test_baking_serves_heads_without_bias_and_half_precision():
    model = residual()
    model.head.bias = None
    with sa.StreamProcessor(model.bfloat16(), alignment=calibrated()) as processor:
        for seed in range(4):
            output = processor(frames(8, seed=seed, shift=1.0).bfloat16())
        plain = processor.adapted_model()
        assert plain.head.bias.dtype == output.dtype == torch.bfloat16
        assert model.head.bias is None


def test_a_mixed_batch_gives_each_stream_what_it_would_have_had_alone():
    coral = calibrated()
    mixed, alone = wrapped(coral, max_streams=4), {}
    with torch.no_grad():
        mixed(frames(1), streams="other")
        for seed in range(6):
            names = [["a", "b", "c", "a", "c", "a"], ["c", "a", "a", "a", "b", "b"]][seed % 2]
            x = frames(6, seed=seed)
            for i, name in enumerate(names):
                x[i] = x[i] * (1 + "abc".index(name)) + "abc".index(name)
            together = mixed(x, streams=names)
            for name in "abc":
                mine = [i for i, n in enumerate(names) if n == name]
                processor = alone.setdefault(name, wrapped(coral))
                torch.testing.assert_close(processor(x[mine]), together[mine], rtol=1e-4, atol=1e-4)
    for name, processor in alone.items():
        found, wanted = mixed.feature_moments(name), processor.feature_moments()
        torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.covariance, wanted.covariance, rtol=1e-4, atol=1e-6)


def test_one_streams_frames_never_touch_another_row():
    a, b = wrapped(max_streams=2), wrapped(max_streams=2)
    for processor, shift in ((a, 0.0), (b, 50.0)):
        for seed in range(5):
            x = frames(4, seed=seed)
            x[2:] += shift
            processor(x, streams=["mine", "mine", "other", "other"])
    assert torch.equal(everything(a, "mine"), everything(b, "mine"))
    assert not torch.equal(everything(a, "other"), everything(b, "other"))


@pytest.mark.parametrize("batch", [1, 5])
def test_an_output_does_not_depend_on_batch_mates_values(batch):
    with wrapped(max_streams=3) as processor, torch.inference_mode():
        for seed in range(5):
            processor(frames(9, seed=seed, shift=2.0), streams=["a", "b", "c"] * 3)
        processor.freeze()
        x, names = frames(batch), ["a", "b", "c", "a", "b"][:batch]
        first = processor(x, streams=names)
        for other in (frames(batch, seed=5, shift=30.0), frames(batch) * math.nan):
            other[0] = x[0]
            assert torch.equal(processor(other, streams=names)[0], first[0])


@pytest.mark.parametrize("options", [{}, {"max_streams": 3}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_frame_has_weight_zero_and_its_neighbours_count(options, bad):
    x = frames(5, shift=1.0)
    poisoned = x.clone()
    poisoned[2] = bad
    coral = calibrated()
    reference, processor = Streaming(coral), wrapped(coral, **options)
    for _ in range(3):
        processor(poisoned)
        reference.update(pooled(torch.cat([x[:2], x[3:]])), offered=5)
    found = processor.feature_moments()
    np.testing.assert_allclose(found.mean, reference.target[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.covariance, reference.target[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        processor(x).detach(), reference.output(pooled(x)), rtol=1e-3, atol=2e-4
    )
    assert processor.event_counts["FramesRejected"] == 3


class Gain(Residual):
    """Multiplies the features behind all BatchNorm layers."""

    gain = 1.0

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + self.bn3(self.conv3(x)))
        return self.head(x.mean(dim=(2, 3)) * self.gain)


@pytest.mark.parametrize(
    ("gain", "event"),
    [
        (torch.tensor([1.0, math.nan]), "FramesRejected"),
        (torch.tensor([1.0, math.inf]), "FramesRejected"),
        (torch.tensor([1.0, 1e25]), "UpdateRefused"),
    ],
)
@pytest.mark.parametrize("estimator", [sa.estimators.EMA(), sa.estimators.Restarting()])
def test_bad_features_hold_the_whole_row_back_and_no_other(estimator, gain, event):
    model = randomise(Gain())
    processor = sa.StreamProcessor(
        model, estimator=estimator, alignment=calibrated(refresh_frames=1), max_streams=2
    )
    processor(frames(2), streams=["a", "b"])
    before = {name: everything(processor, name)[:-1] for name in "ab"}
    model.gain = gain.unsqueeze(1)
    processor(frames(2, seed=1), streams=["a", "b"])
    assert processor.event_counts[event] == 1
    assert not torch.equal(everything(processor, "a")[:-1], before["a"])
    assert torch.equal(everything(processor, "b")[:-1], before["b"])
    assert torch.isfinite(everything(processor, "a")).all()


def test_a_settling_pass_leaves_out_the_frames_whose_features_are_bad():
    x, results = frames(6, shift=2.0), []
    x[1] *= 50.0
    for kept, gain in (([0, 2, 3, 4, 5], 1.0), (list(range(6)), math.nan)):
        model = randomise(Gain())
        model.gain = torch.ones(len(kept), 1)
        model.gain[1] = gain
        with sa.StreamProcessor(model, alignment=calibrated()) as processor:
            for step in range(5):
                processor(x[kept], pts_seconds=step / 4)
            assert processor.event_counts["SettlingPassed"] == 5
            assert processor.drift().overall > 0.0
            results.append(processor.statistics())
    for name, moments in results[0].items():
        torch.testing.assert_close(results[1][name].mean, moments.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(results[1][name].var, moments.var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"max_streams": 2}])
def test_a_forward_that_raises_and_an_update_that_fails_commit_nothing(options):
    class Broken(sa.estimators.EMA):
        broken = False

        def update(self, state, observed):
            if self.broken:
                raise RuntimeError("no")
            return super().update(state, observed)

    estimator = Broken()
    processor = wrapped(estimator=estimator, **options)
    processor(frames(9, shift=1.0))
    before = everything(processor)
    handle = processor.model.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        processor(frames(9, shift=2.0))
    handle.remove()
    estimator.broken = True
    processor(frames(9, shift=2.0))
    assert processor.event_counts["UpdateFailed"] == 1
    assert torch.equal(everything(processor), before)
    estimator.broken = False
    processor(frames(9, shift=2.0))
    assert not torch.equal(everything(processor), before)


def test_a_head_that_begins_to_run_twice_costs_the_update_and_not_the_output():
    class Sometimes(Residual):
        times = 1

        def forward(self, x):
            return sum(super(Sometimes, self).forward(x) for _ in range(self.times))

    model = randomise(Sometimes())
    with sa.StreamProcessor(model, alignment=calibrated()) as processor:
        processor(frames(4))
        before = everything(processor)
        model.times = 2
        assert processor(frames(4)).shape == (4, 5)
        assert "executed several times in a forward" in processor.status.reasons[0]
        assert torch.equal(everything(processor), before)


@pytest.mark.parametrize("max_streams", [1, 2])
def test_snapshot_and_rollback_restore_to_the_bit(max_streams):
    processor = wrapped(estimator=sa.estimators.EMA(0.2), max_streams=max_streams)
    x = [frames(3, seed=seed, shift=seed) for seed in range(9)]
    for batch in x[:4]:
        processor(batch)
    processor.snapshot("here")
    first = [processor(batch) for batch in x[4:]]
    after = everything(processor)
    processor.rollback("here")
    second = [processor(batch) for batch in x[4:]]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(everything(processor), after)
    processor.rollback("source")
    plain = residual()
    assert torch.equal(processor(x[0]), plain(x[0]))


def test_dropped_evicted_and_failed_streams():
    processor = wrapped(max_streams=2, when_full="evict")
    fresh = everything(processor)
    for seed in range(4):
        processor(frames(8, seed=seed, shift=2.0), streams=["a", "b"] * 4)
    kept = everything(processor, "a")
    handle = processor.model.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        processor(frames(1), streams="c")
    handle.remove()
    assert torch.equal(everything(processor, "a"), kept)
    processor.drop_stream("a")
    processor.freeze()
    plain = residual()
    assert torch.equal(processor(frames(2), streams="a"), plain(frames(2)))
    assert torch.equal(everything(processor, "a"), fresh)
    processor(frames(1), streams="c")
    assert torch.equal(everything(processor, "c"), fresh)


def test_frozen_goes_on_aligning_and_a_change_of_mode_starts_from_the_source():
    processor = wrapped()
    for seed in range(4):
        processor(frames(8, seed=seed, shift=2.0))
    processor.freeze()
    before, x = everything(processor), frames(3)
    plain = processor.adapted_model()
    torch.testing.assert_close(processor(x), plain(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(everything(processor), before)
    source = residual()
    for mode in ("shadow", "adapt"):
        processor.mode = mode
        assert torch.equal(processor(x), source(x))


def test_shadow_never_changes_an_output_and_its_candidate_learns():
    events, source = [], residual()
    processor = wrapped(mode="shadow", shadow_every=2, on_event=events.append)
    with torch.no_grad():
        for seed in range(12):
            x = frames(4, seed=seed, shift=2.0)
            assert torch.equal(processor(x), source(x))
    differences = [e.relative_difference for e in events if isinstance(e, sa.events.ShadowCompared)]
    assert differences[0] == 0.0 and differences[-1] > 0.01


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
def test_unwrap_gives_back_the_model_to_the_bit(timing):
    model = residual()
    before, weight = state_of(model), model.head.weight
    with sa.StreamProcessor(model, alignment=calibrated(), timing=timing) as processor:
        for seed in range(4):
            processor(frames(8, seed=seed, shift=2.0))
        assert same({"w": weight}, {"w": before["head.weight"]})
    assert same(state_of(model), before) and model.head.weight is weight
    assert "forward" not in model.head.__dict__ and not model.head._forward_pre_hooks


def test_a_forward_put_on_the_head_before_survives():
    model, calls = residual(), []
    coral = calibrated(model)
    inner = model.head.forward

    def mine(x):
        calls.append(x.shape)
        return inner(x)

    model.head.forward = mine
    with sa.StreamProcessor(model, estimator=FROZEN(), alignment=coral) as processor:
        processor(frames(2))
    assert len(calls) == 1 and model.head.forward is mine


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_inert(copied):
    processor = wrapped()
    for seed in range(4):
        processor(frames(8, seed=seed, shift=2.0))
    twin, x = copied(processor.model), frames(3)
    assert torch.equal(twin(x), processor.model(x))
    before = everything(processor)
    twin(x)
    processor.model(x)
    assert torch.equal(everything(processor), before)
    with sa.StreamProcessor(twin, alignment=calibrated()) as again:
        again(x)


def test_loaded_weights_start_from_the_source_again():
    processor = wrapped(max_streams=2)
    fresh = everything(processor)
    for seed in range(4):
        processor(frames(8, seed=seed, shift=2.0))
    processor.model.load_state_dict(residual(3).state_dict())
    processor(frames(0))
    aligned = slice(-(8 + 2 * 64 + 1), None)
    assert torch.equal(everything(processor)[aligned], fresh[aligned])


MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize("max_streams", [1, 2])
@pytest.mark.parametrize("construct", MODES)
@pytest.mark.parametrize("step", MODES)
def test_any_mix_of_grad_modes(construct, step, max_streams):
    model, x = residual(), frames(9, shift=1.0)
    with construct():
        coral = calibrated(model)
        processor = sa.StreamProcessor(model, alignment=coral, max_streams=max_streams)
    for mode in (step, *MODES):
        with mode():
            processor(x)
    assert processor.event_counts["StepCompleted"] == 4
    assert not {"UpdateFailed", "SettlingFailed"} & processor.event_counts.keys()
    assert not processor._runtime.engine.head.rows.covariance.is_inference()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("max_streams", [1, 2])
def test_gradients_go_through_the_map(max_streams, compiled):
    torch._dynamo.reset()
    model, coral = residual(), calibrated()
    if compiled:
        model = torch.compile(model, backend="aot_eager", fullgraph=True)
    processor = sa.StreamProcessor(
        model, estimator=FROZEN(), alignment=coral, max_streams=max_streams
    )
    names = ["a", "b"] * 4 if max_streams == 2 else None
    for seed in range(3):
        processor(frames(8, seed=seed, shift=2.0), streams=names)
    plain = processor.adapted_model("b" if names else None)
    x = frames(8).requires_grad_()
    output = processor(x, streams=names)
    processor(frames(8, seed=9, shift=5.0), streams=names)
    mine = slice(1, None, 2) if names else slice(None)
    output[mine].square().sum().backward()
    other = frames(8)[mine].requires_grad_()
    plain(other).square().sum().backward()
    torch.testing.assert_close(x.grad[mine], other.grad, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [{}, {"max_streams": 3}, {"mode": "shadow", "shadow_every": 1}])
def test_compiled_models_are_aligned_in_one_graph(options):
    torch._dynamo.reset()
    model, coral = residual(), calibrated()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    plain = wrapped(coral, **options)
    names = ["a", "b", "a", "b"] if "max_streams" in options else None
    with torch.no_grad():
        expected = compiled(frames(4))
        options = {"estimator": FROZEN(), **options}
        with sa.StreamProcessor(compiled, alignment=coral, **options) as processor:
            for seed in range(6):
                x = frames(4, seed=seed, shift=2.0)
                mine, theirs = processor(x, streams=names), plain(x, streams=names)
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
            assert counter.frame_count <= (3 if "mode" in options else 2)
            found = processor.feature_moments("a" if names else None).covariance
            wanted = plain.feature_moments("a" if names else None).covariance
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
            assert not torch.allclose(found, coral.covariance, rtol=1e-2)
        assert torch.equal(compiled(frames(4)), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("one", [True, False])
def test_the_operators_are_what_they_declare(one):
    x, token = frames(2).flatten(1)[:, :8], torch.zeros(1)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.streamadapt.align_.default, (x, token, 0), test_utils=checks)
    arguments = (x, token, 0, one)
    torch.library.opcheck(torch.ops.streamadapt.alignment_, arguments, test_utils=checks)


@pytest.mark.slow
def test_inductor():
    torch._dynamo.reset()
    compiled = torch.compile(residual(), fullgraph=True)
    options = {"alignment": calibrated(), "estimator": sa.estimators.EMA()}
    with torch.no_grad(), sa.StreamProcessor(compiled, **options) as processor:
        for seed in range(3):
            x = frames(8, seed=seed, shift=2.0)
            plain = processor.adapted_model()
            torch.testing.assert_close(processor(x), plain(x), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_autocast_and_a_change_of_dtype():
    processor = wrapped()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        for seed in range(4):
            assert processor(frames(8, seed=seed, shift=1.0)).dtype == torch.bfloat16
    processor.model.double()
    assert processor(frames(2).double()).dtype == torch.float64
    assert "UpdateFailed" not in processor.event_counts


def test_frames_folded_into_the_batch():
    class Clips(Residual):
        def forward(self, x):
            return super().forward(x.flatten(0, 1)).view(*x.shape[:2], -1).mean(dim=1)

    coral = calibrated()
    x = frames(24).view(8, 3, 3, 8, 8)
    x[4:] += 3.0
    processor = sa.StreamProcessor(
        randomise(Clips()), estimator=FROZEN(), alignment=coral, max_streams=2, frames_per_row=3
    )
    processor(x, streams=["a"] * 4 + ["b"] * 4)
    mean, covariance = numpy_coral.moments(pooled(x[4:].flatten(0, 1)))
    source = (coral.mean.numpy(), coral.covariance.numpy())
    wanted = numpy_coral.blend(source, (mean, covariance), 1 - 2 ** (-4 / 12))
    found = processor.feature_moments("b")
    np.testing.assert_allclose(found.mean, wanted[0], rtol=1e-5)
    np.testing.assert_allclose(found.covariance, wanted[1], rtol=1e-4, atol=1e-6)
    alone = sa.StreamProcessor(
        randomise(Clips()), estimator=FROZEN(), alignment=coral, max_streams=2
    )
    with pytest.raises(sa.errors.StreamError):
        alone(x, streams=["a"] * 4 + ["b"] * 4)


def test_what_does_not_fit_is_refused_before_the_model_is_touched():
    model, coral = residual(), calibrated()
    cases = [
        ("coral", sa.errors.ConfigurationError, "`alignment` must be a Coral, got str"),
        (
            dataclasses.replace(coral, layer="conv1"),
            sa.errors.UnsupportedModelError,
            "a Conv2d, no nn.Linear, named 'conv1'",
        ),
        (
            dataclasses.replace(coral, mean=coral.mean[:3], covariance=coral.covariance[:3, :3]),
            sa.errors.ConfigurationError,
            "has 8 inputs, `alignment` was calibrated on 3. Calibrate it on this model.",
        ),
    ]
    for alignment, kind, message in cases:
        with pytest.raises(kind, match=message):
            sa.StreamProcessor(model, alignment=alignment)
        assert not any("forward" in module.__dict__ for module in model.modules())
    with sa.StreamProcessor(model) as processor:
        with pytest.raises(sa.errors.ConfigurationError, match="aligns no features"):
            processor.feature_moments()
        assert processor.describe().alignment is None


def test_the_description_tells_of_the_alignment_and_its_bytes():
    with wrapped() as processor, sa.StreamProcessor(residual(), estimator=FROZEN()) as without:
        described = processor.describe()
        assert described.alignment == repr(calibrated())
        assert described.bytes_per_stream == without.describe().bytes_per_stream + 64 + 2 * 8 * 32
        assert "Coral(layer='head'" in str(described)
