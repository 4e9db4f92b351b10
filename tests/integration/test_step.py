"""A step is a transaction: the model's answer always, the update for all layers or for none."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import streamadapt as sa
from tests.models import Residual, frames, population, randomise, residual, same, single, state_of


def numbers(processor, stream=None):
    return {name: (m.mean, m.var) for name, m in processor.statistics(stream).items()}


def equal(a, b):
    return all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.mark.parametrize("layer", ["conv1", "bn1", "bn2", "conv3", "bn3", "head"])
@pytest.mark.parametrize("options", [{}, {"max_streams": 2}, {"timing": "synchronous"}])
@pytest.mark.parametrize("estimator", [sa.estimators.EMA(), sa.estimators.Restarting()])
def test_an_exception_anywhere_in_the_forward_leaves_the_bank_untouched(estimator, layer, options):
    model, events = residual(), []
    processor = sa.StreamProcessor(model, estimator=estimator, on_event=events.append, **options)
    processor(frames(4, shift=1.0))
    before = numbers(processor)

    def fail(module, args, output):
        raise ZeroDivisionError("sensor\nand more")

    handle = model.get_submodule(layer).register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        processor(frames(4, shift=9.0))
    handle.remove()
    assert equal(numbers(processor), before)
    failed = [event for event in events if isinstance(event, sa.events.ForwardFailed)]
    assert [event.error for event in failed] == ["ZeroDivisionError: sensor"]
    processor(frames(4, shift=9.0))
    assert not equal(numbers(processor), before)


def test_streams_admitted_for_a_failed_forward_are_forgotten():
    model = residual()
    processor = sa.StreamProcessor(
        model, estimator=sa.estimators.EMA(), max_streams=2, when_full="evict"
    )
    processor(frames(2, shift=2.0), streams=["a", "b"])
    kept = numbers(processor, "a")
    handle = model.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        processor(frames(1), streams=["c"])
    handle.remove()
    assert set(processor.streams) == {"a", "b"}
    assert equal(numbers(processor, "a"), kept)


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
def test_an_estimator_that_fails_costs_the_update_and_not_the_output(timing):
    class Broken(sa.estimators.EMA):
        def update(self, state, observed):
            raise RuntimeError("no")

    model = residual()
    x = frames(4)
    expected = model(x)
    processor = sa.StreamProcessor(model, estimator=Broken(), timing=timing)
    assert torch.equal(processor(x), expected)
    assert processor.event_counts["UpdateFailed"] == 1
    assert not processor.status.healthy
    assert processor.status.reasons == ("the update failed: RuntimeError: no",)
    assert processor.drift().overall == 0.0


@pytest.mark.parametrize("options", [{}, {"max_streams": 3}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_frame_has_weight_zero_and_its_neighbours_count(options, bad):
    x = frames(5, shift=1.0)
    poisoned = x.clone()
    poisoned[2] = bad
    good = torch.cat([x[:2], x[3:]])
    a, b = (
        sa.StreamProcessor(residual(), estimator=sa.estimators.EMA(0.4), **options)
        for _ in range(2)
    )
    output = a(poisoned)
    b(good)
    for name, (mean, var) in numbers(a).items():
        torch.testing.assert_close(mean, numbers(b)[name][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(var, numbers(b)[name][1], rtol=1e-5, atol=1e-6)
        assert torch.isfinite(mean).all() and torch.isfinite(var).all()
    assert torch.equal(torch.isnan(output).all(dim=1), torch.tensor([0, 0, 1, 0, 0]).bool())
    assert a.event_counts["FramesRejected"] == 1


def test_a_bad_frame_gets_what_the_current_statistics_give():
    model = residual()
    processor = sa.StreamProcessor(model, estimator=sa.estimators.EMA())
    processor(frames(4, shift=2.0))
    plain = processor.adapted_model()
    x = frames(3)
    x[1, 0, 0, 0] = math.nan
    torch.testing.assert_close(processor(x), plain(x), equal_nan=True)


@pytest.mark.parametrize("estimator", [sa.estimators.EMA(), sa.estimators.Restarting()])
def test_a_batch_without_a_usable_frame_changes_nothing_and_three_are_noticed(estimator):
    events = []
    processor = sa.StreamProcessor(residual(), estimator=estimator, on_event=events.append)
    processor(frames(2))
    before = numbers(processor)
    for _ in range(3):
        processor(torch.full((2, 3, 8, 8), math.nan))
    assert equal(numbers(processor), before)
    outcomes = [event.outcome for event in events if isinstance(event, sa.events.StepCompleted)]
    assert outcomes == ["updated", "rejected", "rejected", "rejected"]
    assert processor.status.reasons == ("no frame was usable in the last 3 batches",)
    processor(frames(2))
    assert processor.status.healthy


def test_finite_frames_that_overflow_a_layer_do_not_reach_the_state():
    processor = sa.StreamProcessor(single(3), estimator=sa.estimators.EMA(0.5))
    before = numbers(processor)
    processor(torch.full((2, 3, 4, 4), 3e38) * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    after = numbers(processor)
    assert equal(before, after)
    processor(torch.ones(2, 3, 4, 4))
    assert all(torch.isfinite(t).all() for pair in numbers(processor).values() for t in pair)


@settings(max_examples=25)
@given(
    batches=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from([0.0, 1.0, 1e4, 1e20, 3e38, math.nan, math.inf, -math.inf]),
            st.sampled_from([0.0, 1e-30, 1.0, 1e10]),
        ),
        min_size=1,
        max_size=6,
    ),
    estimator=st.sampled_from(
        [
            sa.estimators.EMA(1.0),
            sa.estimators.EMA(0.1, rule="pytorch"),
            sa.estimators.Welford(),
            sa.estimators.DUA(),
            sa.estimators.Restarting(),
            sa.estimators.Restarting(material=0.0, block_frames=1, block_seconds=0.01),
        ]
    ),
)
def test_the_state_is_finite_always(batches, estimator):
    with sa.StreamProcessor(residual(), estimator=estimator) as processor:
        for count, shift, scale in batches:
            processor(frames(count) * scale + shift)
            for mean, var in numbers(processor).values():
                assert torch.isfinite(mean).all()
                assert torch.isfinite(var).all() and (var >= 0).all()


def test_an_empty_batch_gives_the_models_output_and_commits_nothing():
    events = []
    processor = sa.StreamProcessor(residual(), max_streams=2, on_event=events.append)
    assert processor(frames(0)).shape == (0, 5)
    assert processor(frames(0), streams=[]).shape == (0, 5)
    assert [event.outcome for event in events] == ["empty", "empty"]
    assert processor.streams == ()


@pytest.mark.parametrize("batch", [1, 5])
def test_an_output_does_not_depend_on_batch_mates_values(batch):
    model, estimator = residual(), sa.estimators.EMA()
    with (
        sa.StreamProcessor(model, estimator=estimator, max_streams=3) as processor,
        torch.inference_mode(),
    ):
        processor(frames(3, shift=2.0), streams=["a", "b", "c"])
        processor.freeze()
        x, names = frames(batch), ["a", "b", "c", "a", "b"][:batch]
        first = processor(x, streams=names)
        for seed in range(3):
            other = frames(batch, seed=seed + 5, shift=30.0)
            other[0] = x[0]
            assert torch.equal(processor(other, streams=names)[0], first[0])


@pytest.mark.parametrize("estimator", [sa.estimators.EMA(), sa.estimators.Restarting()])
def test_one_streams_frames_never_touch_another_row(estimator):
    a, b = (sa.StreamProcessor(residual(), estimator=estimator, max_streams=3) for _ in range(2))
    for processor, shift in ((a, 0.0), (b, 50.0)):
        for seed in range(12):
            x = frames(4, seed=seed)
            x[2:] += shift
            x[2:] *= 1 + seed // 3  # the other stream's world goes on changing
            stamps = [seed / 3, seed / 3 + 0.1] * 2
            processor(x, streams=["mine", "mine", "other", "other"], pts_seconds=stamps)
    assert a.drift("mine").overall > 0.0
    assert equal(numbers(a, "mine"), numbers(b, "mine"))
    assert not equal(numbers(a, "other"), numbers(b, "other"))


def test_lagged_statistics_are_those_before_the_batch():
    x = [frames(3, seed=seed, shift=seed) for seed in range(4)]
    model = residual()
    with sa.StreamProcessor(model, estimator=sa.estimators.EMA(0.5)) as processor:
        for batch in x:
            plain = processor.adapted_model()
            torch.testing.assert_close(processor(batch), plain(batch))


def test_synchronous_batch_statistics_are_train_mode_batch_norm():
    x = frames(6, shift=1.0)
    model, reference = residual(), residual()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with sa.StreamProcessor(
        model, estimator=sa.estimators.BatchStatistics(), timing="synchronous"
    ) as processor:
        torch.testing.assert_close(processor(x), reference(x), rtol=1e-4, atol=1e-5)


def test_synchronous_streams_of_a_mixed_batch_use_their_own_frames():
    x = frames(6)
    x[3:] = x[3:] * 3 + 2
    options = {"estimator": sa.estimators.BatchStatistics(), "timing": "synchronous"}
    with sa.StreamProcessor(residual(), max_streams=2, **options) as mixed:
        together = mixed(x, streams=["a"] * 3 + ["b"] * 3)
    with sa.StreamProcessor(residual(), **options) as alone:
        apart = torch.cat([alone(x[:3]), alone(x[3:])])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["mixture", "pytorch"])
def test_synchronous_and_lagged_agree_on_a_single_layer_after_the_fact(rule):
    x = [frames(4, seed=seed, shift=seed) for seed in range(5)]
    states = []
    for timing in ("lagged", "synchronous"):
        with sa.StreamProcessor(
            single(3), estimator=sa.estimators.EMA(0.3, rule=rule), timing=timing
        ) as processor:
            for batch in x:
                processor(batch)
            states.append(processor.statistics()[""])
    torch.testing.assert_close(states[0].mean, states[1].mean)
    torch.testing.assert_close(states[0].var, states[1].var, rtol=1e-5, atol=1e-6)


def test_ema_with_pytorchs_rule_equals_batch_norms_own_buffers():
    reference, model = single(3), single(3)
    reference.momentum = 0.1
    reference.train()
    with sa.StreamProcessor(model, estimator=sa.estimators.EMA(0.1, rule="pytorch")) as processor:
        for seed in range(40):
            x = frames(5, seed=seed, shift=seed % 7, scale=1 + seed % 3)
            processor(x)
            reference(x)
        torch.testing.assert_close(model.running_mean, reference.running_mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(model.running_var, reference.running_var, rtol=1e-6, atol=1e-6)


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    ratio=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    seed=st.integers(0, 10_000),
)
def test_welford_is_the_population_however_it_is_cut(sizes, ratio, seed):
    x = frames(sum(sizes), seed=seed) + ratio
    mean, var = population([x])
    processor = sa.StreamProcessor(single(3), estimator=sa.estimators.Welford())
    with processor:
        for part in x.split(sizes):
            processor(part)
        found = processor.statistics()[""]
    sigma = np.sqrt(var)
    ulp = np.spacing(np.abs(mean).astype(np.float32)).astype(np.float64)
    tolerance = np.maximum(1e-5 * sigma, ulp)
    assert (np.abs(found.mean.numpy() - mean) <= tolerance).all()
    assert (np.abs(found.std.numpy() - sigma) <= tolerance).all()


def test_errors_fade_at_the_known_rate():
    a = 0.25
    inputs = [frames(3, seed=seed) for seed in range(12)]
    second, first = [], []
    for start in (0.0, 4.0):
        model = single(3)
        model.running_mean.add_(start)
        with sa.StreamProcessor(model, estimator=sa.estimators.EMA(a)) as processor:
            trace = []
            for x in inputs:
                m = processor.statistics()[""]
                trace.append((m.mean, m.var + m.mean.square()))
                processor(x)
        first.append([mean for mean, _ in trace])
        second.append([moment for _, moment in trace])
    for series in (first, second):
        initial = (series[0][0] - series[1][0]).abs()
        for n, (x, y) in enumerate(zip(*series, strict=True)):
            assert ((x - y).abs() <= (1 - a) ** n * initial * (1 + 1e-4) + 1e-5).all()


def test_any_output_structure_and_extra_arguments_pass_through():
    class Structured(Residual):
        def forward(self, x, gain, *, streams, note=None):
            y = super().forward(x) * gain
            return {"logits": y, "note": note, "nested": [y, (streams, None)]}

    model = randomise(Structured())
    with sa.StreamProcessor(model, max_streams=2) as processor:
        output = processor(
            frames(2), 2.0, streams=["a", "b"], note="n", forward_kwargs={"streams": 7}
        )
        assert output["note"] == "n" and output["nested"][1] == (7, None)
        assert set(processor.streams) == {"a", "b"}


def test_inputs_that_are_lists_or_dicts():
    class Lists(Residual):
        def forward(self, images):
            images = images["images"] if isinstance(images, dict) else images
            return super().forward(torch.stack(list(images)))

    with sa.StreamProcessor(randomise(Lists()), max_streams=2) as processor:
        processor(list(frames(3)), streams=["a", "b", "b"])
        processor({"images": frames(2)}, streams=["a", "b"])
        with pytest.raises(sa.errors.StreamError, match="2 entries for a batch of 3"):
            processor(list(frames(3)), streams=["a", "b"])


def test_autocast():
    model = residual()
    with (
        sa.StreamProcessor(model, max_streams=2) as processor,
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.no_grad(),
    ):
        expected = model(frames(4)).dtype
        for _ in range(3):
            assert processor(frames(4, shift=1.0)).dtype == expected
    assert processor.event_counts["StepCompleted"] == 3
    assert not {"UpdateFailed", "SettlingFailed"} & processor.event_counts.keys()


def test_a_layer_called_several_times_is_merged_by_count():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            self.bn(x[:, :, :4])
            return self.bn(x * 2)

    x = frames(3, shift=1.0)
    with sa.StreamProcessor(randomise(Twice()), estimator=sa.estimators.EMA(1.0)) as processor:
        processor(x)
        found = processor.statistics()["bn"]
    flat = [part.permute(1, 0, 2, 3).reshape(1, 3, -1, 1) for part in (x[:, :, :4], x * 2)]
    mean, var = population(flat)
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(found.var.numpy(), var, rtol=1e-5)


def test_a_layer_that_is_not_executed_keeps_its_values():
    class Maybe(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x, both):
            return self.b(self.a(x)) if both else self.a(x)

    events, estimator = [], sa.estimators.EMA()
    with sa.StreamProcessor(
        randomise(Maybe()), estimator=estimator, on_event=events.append
    ) as processor:
        before = numbers(processor)
        processor(frames(2), False)
        after = numbers(processor)
        assert equal({"b": before["b"]}, {"b": after["b"]})
        assert not equal({"a": before["a"]}, {"a": after["a"]})
        processor(frames(2), True)
        assert not equal({"b": before["b"]}, {"b": numbers(processor)["b"]})
    missing = [event.layers for event in events if isinstance(event, sa.events.LayersUnobserved)]
    assert missing == [("b",)]


def test_frames_folded_into_the_batch():
    class Clips(Residual):
        def forward(self, x):
            return super().forward(x.flatten(0, 1)).view(*x.shape[:2], -1).mean(dim=1)

    x = frames(12).view(4, 3, 3, 8, 8)
    x[2:] += 3.0
    names = ["a", "a", "b", "b"]
    processor = sa.StreamProcessor(
        randomise(Clips()), max_streams=2, frames_per_row=3, estimator=sa.estimators.EMA(1.0)
    )
    processor(x, streams=names)
    mean, var = population(
        [torch.nn.functional.conv2d(x[:2].flatten(0, 1), processor.model.conv1.weight, padding=1)]
    )
    np.testing.assert_allclose(processor.statistics("a")["bn1"].mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(processor.statistics("a")["bn1"].var, var, rtol=1e-4, atol=1e-5)
    undeclared = sa.StreamProcessor(randomise(Clips()), max_streams=2)
    with pytest.raises(sa.errors.StreamError, match=r"'bn1'.*12 items for a batch of 4"):
        undeclared(x, streams=names)
    alone = sa.StreamProcessor(randomise(Clips()), estimator=sa.estimators.EMA(1.0))
    alone(x)
    mean, _ = population(
        [torch.nn.functional.conv2d(x.flatten(0, 1), alone.model.conv1.weight, padding=1)]
    )
    np.testing.assert_allclose(alone.statistics()["bn1"].mean, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm1d(3), (4, 3)),
        (nn.BatchNorm1d(3), (4, 3, 6)),
        (nn.BatchNorm3d(3), (4, 3, 2, 3, 4)),
        (nn.SyncBatchNorm(3), (4, 3, 5, 5)),
    ],
)
@pytest.mark.parametrize("max_streams", [1, 2])
def test_every_rank(module, shape, max_streams):
    model = nn.Sequential(randomise(nn.Sequential(module)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2
    with sa.StreamProcessor(
        model, estimator=sa.estimators.EMA(1.0), max_streams=max_streams
    ) as processor:
        processor(x)
        found = next(iter(processor.statistics().values()))
        flat = x.transpose(0, 1).flatten(1).double()
        torch.testing.assert_close(found.mean, flat.mean(dim=1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.var, flat.var(dim=1, correction=0), rtol=1e-4, atol=1e-6)
        output = processor(x)
    normal = (x - _cast(found.mean, x)) / (_cast(found.var, x) + module.eps).sqrt()
    wanted = normal * _cast(module.weight, x) + _cast(module.bias, x)
    torch.testing.assert_close(output, wanted.detach(), rtol=1e-4, atol=1e-4)


def _cast(value, x):
    return value.detach().float().view(1, -1, *([1] * (x.dim() - 2)))


def test_reentrant_steps_raise_and_concurrent_steps_serialise():
    class Nested(Residual):
        processor = None

        def forward(self, x):
            if self.processor is not None:
                self.processor(x)
            return super().forward(x)

    model = randomise(Nested())
    processor = sa.StreamProcessor(model)
    model.processor = processor
    with pytest.raises(sa.errors.ConcurrencyError, match="inside one of its own steps"):
        processor(frames(1))
    model.processor = None
    threads = [
        threading.Thread(target=lambda: [processor(frames(2)) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert processor.event_counts["StepCompleted"] == 80
    assert int(processor._runtime.engine.bank.updates[0]) == 80


def test_readers_see_whole_states_only():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()
    model[1].eps = model[0].eps = 0.0
    processor = sa.StreamProcessor(model, estimator=sa.estimators.EMA(1.0))
    stop, torn = threading.Event(), []

    def read():
        while not stop.is_set():
            state = processor.statistics()
            counts = {int(m.count[0]) for m in state.values()}
            if len(counts) != 1:
                torn.append(counts)

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(200):
        processor(frames(2, seed=seed))
    stop.set()
    reader.join()
    assert not torn


def test_a_handler_may_change_state_but_its_errors_stay_its_own():
    model = residual()
    processor = sa.StreamProcessor(model)

    def handler(event):
        if isinstance(event, sa.events.StepCompleted) and event.step == 0:
            processor.snapshot("inside")
        if isinstance(event, sa.events.StepCompleted) and event.step == 1:
            raise RuntimeError("mine")

    processor.subscribe(handler)
    processor(frames(2))
    processor(frames(2))
    assert processor.handler_errors == 1
    assert processor.describe().snapshots == ("inside",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timing": "eager"}, "`timing` must be 'lagged' or 'synchronous', got 'eager'."),
        ({"mode": "off"}, "`mode` must be 'adapt' or 'shadow', got 'off'."),
        ({"max_streams": 0}, "`max_streams` must be a whole number from 1, got 0."),
        (
            {"backend": "cuda"},
            "`backend` must be 'auto' or 'compiled' or 'triton' or 'hooks', got 'cuda'.",
        ),
        (
            {"backend": "triton"},
            '`backend="triton"` cannot be had: the model is on cpu. `backend="auto"` does without.',
        ),
        (
            {"estimator": sa.estimators.BatchStatistics()},
            'BatchStatistics is a synchronous method: give timing="synchronous". One batch late '
            "it would be something else.",
        ),
        (
            {"estimator": "ema"},
            "`estimator` must be an instance of streamadapt.estimators.Estimator, got 'ema'.",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    model = residual()
    source = state_of(model)
    with pytest.raises(sa.errors.ConfigurationError) as caught:
        sa.StreamProcessor(model, **arguments)
    assert str(caught.value) == message
    assert same(state_of(model), source) and "forward" not in model.bn1.__dict__
