"""Each update rule against its formula in float64 NumPy, and against PyTorch's own BatchNorm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from streamadapt import StreamProcessor
from streamadapt.bank import State
from streamadapt.estimators import (
    DUA,
    EMA,
    MECTA,
    AlphaBN,
    BatchStatistics,
    Estimator,
    Frozen,
    Observation,
    SourcePrior,
)
from streamadapt.estimators.base import EachChannelAlone, Timing
from streamadapt.moments import Moments
from streamadapt.testing import fake_observation, fake_state, frames

Array = np.ndarray
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def numbers(moments: Moments) -> tuple[Array, Array, Array]:
    return moments.count.numpy(), moments.mean.numpy(), moments.var.numpy()


def observations(count: int) -> Iterator[Observation]:
    for seed in range(count):
        yield fake_observation(seed=seed)


def advanced(state: State, new: State, observed: Observation) -> State:
    """The next state as the bank would keep it."""
    return State(
        new.moments,
        state.source,
        state.frames + observed.frames,
        state.updates + 1.0,
        new.scalars,
    )


# One step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [0, 3])
def test_frozen_keeps_everything(updates: int) -> None:
    state = fake_state(Frozen(), updates=updates)
    assert Frozen().update(state, fake_observation()) is state


def test_batch_statistics_are_the_batchs() -> None:
    observed = fake_observation()
    new = BatchStatistics().update(fake_state(BatchStatistics(), updates=3), observed)
    for got, wanted in zip(numbers(new.moments), numbers(observed.moments), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("weight", [0.0, 8.0, 16.0, 256.0])
def test_the_source_prior_weighs_source_and_batch_by_frames(weight: float) -> None:
    estimator = SourcePrior(weight)
    state, observed = fake_state(estimator, updates=2), fake_observation()
    got = estimator.update(state, observed).moments
    (_, mean, var), n = numbers(observed.moments), observed.frames.numpy()
    for name, source, batch in (
        ("mean", state.source.mean.numpy(), mean),
        ("var", state.source.var.numpy(), var),
    ):
        wanted = weight / (weight + n) * source + n / (weight + n) * batch
        np.testing.assert_allclose(getattr(got, name), wanted, **CLOSE)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_alpha_bn_mixes_source_and_batch_and_drops_the_between_term(alpha: float) -> None:
    state, observed = fake_state(AlphaBN(alpha), updates=2), fake_observation()
    got = AlphaBN(alpha).update(state, observed).moments
    _, mean, var = numbers(observed.moments)
    _, source_mean, source_var = numbers(state.source)
    np.testing.assert_allclose(got.mean, (1 - alpha) * source_mean + alpha * mean, **CLOSE)
    np.testing.assert_allclose(got.var, (1 - alpha) * source_var + alpha * var, **CLOSE)


@pytest.mark.parametrize("a", [0.01, 0.1, 1.0])
def test_the_ema_that_mirrors_pytorch_takes_the_unbiased_variance_alone(a: float) -> None:
    estimator = EMA(a, rule="pytorch")
    state, observed = fake_state(estimator, updates=1), fake_observation()
    (_, mean, var), (n, m, v) = numbers(state.moments), numbers(observed.moments)
    got = estimator.update(state, observed).moments
    np.testing.assert_allclose(got.mean, (1 - a) * mean + a * m, **CLOSE)
    np.testing.assert_allclose(got.var, (1 - a) * var + a * v * n / (n - 1), **CLOSE)


def test_the_ema_that_mirrors_pytorch_takes_one_value_as_it_is() -> None:
    estimator = EMA(0.5, rule="pytorch")
    state, seen = fake_state(estimator), fake_observation(positions=1.0)
    lone = Observation(
        Moments(torch.ones_like(seen.moments.count), seen.moments.mean, seen.moments.var),
        torch.ones_like(seen.frames),
        seen.elapsed_seconds,
    )
    got = estimator.update(state, lone).moments
    torch.testing.assert_close(got.var, 0.5 * (state.moments.var + seen.moments.var))


# Many steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.03, 0.3, 1.0])
def test_the_ema_has_the_moments_of_a_fading_window(a: float) -> None:
    """Every value weighs `a (1-a)**age / n`; what the window does not hold is the source."""
    estimator, rng = EMA(a), np.random.default_rng(1)
    state = fake_state(estimator, rows=1, channels=2)
    source_mean, source_var = state.source.mean.numpy(), state.source.var.numpy()
    batches = [
        rng.normal(rng.normal(0, 3, 2), rng.uniform(0.1, 2, 2), (rng.integers(1, 40), 2))
        for _ in range(25)
    ]
    for batch in batches:
        moments = Moments(
            *(
                torch.from_numpy(np.atleast_2d(value))
                for value in (np.full(2, float(len(batch))), batch.mean(axis=0), batch.var(axis=0))
            )
        )
        observed = Observation(moments, torch.ones(1, 1).double(), torch.zeros(1, 1).double())
        state = advanced(state, estimator.update(state, observed), observed)
    ages = range(len(batches) - 1, -1, -1)
    values = np.concatenate(batches)
    share = np.concatenate(
        [np.full(len(b), a * (1 - a) ** age / len(b)) for b, age in zip(batches, ages, strict=True)]
    )
    rest = (1 - a) ** len(batches)
    mean = share @ values + rest * source_mean
    var = share @ (values - mean) ** 2 + rest * (source_var + (source_mean - mean) ** 2)
    np.testing.assert_allclose(state.moments.mean[0], mean, **CLOSE)
    np.testing.assert_allclose(state.moments.var[0], var, **CLOSE)


@pytest.mark.parametrize(
    ("momentum", "decay", "floor"), [(0.1, 0.94, 0.005), (0.5, 0.8, 0.0), (0.3, 1.0, 0.1)]
)
def test_dua_decays_its_weight_to_the_floor(momentum: float, decay: float, floor: float) -> None:
    estimator = DUA(momentum, decay=decay, floor=floor)
    state = fake_state(estimator)
    _, mean, var = numbers(state.moments)
    scheduled = momentum
    for observed in observations(60):
        scheduled *= decay
        weight = scheduled + floor
        n, m, v = numbers(observed.moments)
        mean = (1 - weight) * mean + weight * m
        var = (1 - weight) * var + weight * v * n / (n - 1)
        state = advanced(state, estimator.update(state, observed), observed)
        np.testing.assert_allclose(state.scalars["dua_momentum"], scheduled, rtol=1e-12)
    np.testing.assert_allclose(state.moments.mean, mean, **CLOSE)
    np.testing.assert_allclose(state.moments.var, var, **CLOSE)


LAYERS = (slice(0, 1), slice(1, 4), slice(4, 6))


class ThreeLayers(EachChannelAlone):
    """Six channels that are three layers."""

    def mean_over_layer(self, per_channel: Tensor) -> Tensor:
        parts = [per_channel[..., span] for span in LAYERS]
        return torch.cat([one.mean(-1, keepdim=True).expand_as(one) for one in parts], dim=-1)


def gate(
    mean: Array, var: Array, m: Array, v: Array, *, scale: float, floor: Array | float
) -> Array:
    """MECTA's weight of a batch in a layer: both divergences, as defined for two normals."""
    p, q, d = var + floor, v + floor, m - mean
    forth = 0.5 * (np.log(p / q) + (q + d**2) / p - 1)
    back = 0.5 * (np.log(q / p) + (p + d**2) / q - 1)
    return 1 - np.exp(-scale * (forth + back).mean(-1, keepdims=True))


@pytest.mark.parametrize(("scale", "floor"), [(1.0, 1e-3), (0.02, 1e-3), (0.3, 0.5)])
def test_mectas_drift_opens_the_gate_layer_by_layer(scale: float, floor: float) -> None:
    estimator = MECTA(scale, floor=floor)
    state = fake_state(estimator)
    _, mean, var = (part.copy() for part in numbers(state.moments))
    source_var = state.source.var.numpy()
    for plain in observations(20):
        observed = replace(plain, layers=ThreeLayers())
        _, m, v = numbers(observed.moments)
        for span in LAYERS:
            a = gate(
                *(one[:, span] for one in (mean, var, m, v)),
                scale=scale,
                floor=floor * source_var[span].mean(),
            )
            mean[:, span] = (1 - a) * mean[:, span] + a * m[:, span]
            var[:, span] = (1 - a) * var[:, span] + a * v[:, span]
        state = advanced(state, estimator.update(state, observed), observed)
        np.testing.assert_allclose(state.moments.mean, mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(state.moments.var, var, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
@pytest.mark.parametrize("streams", [1, 2])
def test_mectas_layers_are_the_models(timing: Timing, streams: int) -> None:
    """Layers of one and of forty channels, which the bank pads; each has a gate of its own."""
    model = nn.Sequential(nn.BatchNorm2d(40), nn.Conv2d(40, 1, 1), nn.BatchNorm2d(1)).eval()
    with torch.no_grad():
        model[1].weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
        for layer in (model[0], model[2]):
            layer.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            layer.running_var.fill_(1.5)
    plain, inputs = copy.deepcopy(model), []
    plain[2].register_forward_pre_hook(lambda _, seen: inputs.append(seen[0]))
    wanted = [
        (layer.running_mean.double().numpy(), layer.running_var.double().numpy())
        for layer in (model[0], model[2])
    ]
    names = ["a", "b"][:streams]
    estimator = MECTA(0.05)
    with (
        torch.no_grad(),
        StreamProcessor(
            model, estimator=estimator, timing=timing, max_streams=streams
        ) as processor,
    ):
        for seed in range(5):
            batch = frames(6, channels=40, size=4, seed=seed, gain=0.5)
            crowd = torch.cat([batch, batch + 9.0]) if streams == 2 else batch
            processor(crowd, streams=[name for name in names for _ in range(6)])
            for index, layer in enumerate((plain[0], plain[2])):
                if index == 1 or timing == "lagged":  # the statistics that the batch went through
                    plain(batch)
                x = (batch if index == 0 else inputs[-1]).double().numpy()
                mean, var = wanted[index]
                m, v = x.mean((0, 2, 3)), x.var((0, 2, 3))
                a = gate(mean, var, m, v, scale=0.05, floor=1.5e-3)
                wanted[index] = ((1 - a) * mean + a * m, (1 - a) * var + a * v)
                if timing == "synchronous":
                    set_statistics(layer, wanted[index])
            for index, layer in enumerate((plain[0], plain[2])):
                set_statistics(layer, wanted[index])
        for name, expected in zip(("0", "2"), wanted, strict=True):
            got = processor.statistics("a")[name]
            np.testing.assert_allclose(got.mean, expected[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got.var, expected[1], rtol=1e-4, atol=1e-5)


def set_statistics(layer: nn.Module, values: tuple[Array, Array]) -> None:
    layer.running_mean.copy_(torch.from_numpy(values[0]))  # type: ignore[operator, union-attr]
    layer.running_var.copy_(torch.from_numpy(values[1]))  # type: ignore[operator, union-attr]


def test_duas_defaults_are_the_papers() -> None:
    estimator = DUA()
    state = fake_state(estimator, rows=1)
    for k in range(1, 4):
        observed = fake_observation(rows=1, seed=k)
        new = estimator.update(state, observed)
        moved = (new.moments.mean - state.moments.mean) / (
            observed.moments.mean - state.moments.mean
        )
        np.testing.assert_allclose(moved, 0.1 * 0.94**k + 0.005, rtol=1e-9)
        state = advanced(state, new, observed)


@given(st.floats(0.01, 1.0), st.integers(1, 40), st.integers(0, 2**16))
def test_a_fault_in_the_emas_state_fades_as_promised(a: float, steps: int, seed: int) -> None:
    """In (mean, second moment) two states come together as `(1-a)**n`, whatever the inputs."""
    estimator = EMA(a)
    states = [fake_state(estimator, seed=seed + i, updates=1) for i in range(2)]

    def gap() -> list[Tensor]:
        (one, other) = (state.moments for state in states)
        second = [moments.var + moments.mean.square() for moments in (one, other)]
        return [(one.mean - other.mean).abs(), (second[0] - second[1]).abs()]

    initial = gap()
    for observed in observations(steps):
        states = [advanced(s, estimator.update(s, observed), observed) for s in states]
    for now, before in zip(gap(), initial, strict=True):
        assert (now <= (1 - a) ** steps * before + 1e-9).all()


# Against nn.BatchNorm ----------------------------------------------------------------------------


def trained(model: nn.Module, batches: list[Tensor], momentum: float) -> nn.Module:
    """What PyTorch's training mode makes of the buffers."""
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
    with torch.no_grad():
        for batch in batches:
            twin(batch)
    return twin


def image_batches() -> list[Tensor]:
    return [
        frames(2 + seed % 7, channels=5, size=3 + seed % 5, seed=seed, gain=2.0, offset=seed / 25)
        for seed in range(50)
    ]


def channels_last_batches() -> list[Tensor]:
    return [x.contiguous(memory_format=torch.channels_last) for x in image_batches()]


def vector_batches() -> list[Tensor]:
    return [x[:, :, 0, 0] for x in image_batches()]


def video_batches() -> list[Tensor]:
    return [x.unsqueeze(2).expand(-1, -1, 3, -1, -1) for x in image_batches()]


@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0])
@pytest.mark.parametrize(
    ("layer", "batches"),
    [
        (nn.BatchNorm2d, image_batches),
        (nn.BatchNorm2d, channels_last_batches),
        (nn.BatchNorm1d, vector_batches),
        (nn.BatchNorm3d, video_batches),
    ],
    ids=["2d", "2d channels last", "1d", "3d"],
)
def test_buffers_are_those_of_pytorchs_training_mode(
    layer: Callable[[int], nn.Module], batches: Callable[[], list[Tensor]], momentum: float
) -> None:
    model, inputs = layer(5).eval(), batches()
    wanted = trained(model, inputs, momentum)
    with StreamProcessor(model, estimator=EMA(momentum, rule="pytorch")) as processor:
        for batch in inputs:
            processor(batch)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(
                getattr(model, name), getattr(wanted, name), rtol=1e-6, atol=1e-6
            )


def test_the_mixture_keeps_the_spread_between_batches_that_pytorch_drops() -> None:
    """Batches of one grey level each: PyTorch's running variance goes to zero, ours does not."""
    levels = torch.randn(400, generator=torch.Generator().manual_seed(0))
    batches = [level.expand(1, 1, 4, 4) for level in levels]
    model = nn.BatchNorm2d(1).eval()
    found = {}
    for rule in ("mixture", "pytorch"):
        with StreamProcessor(model, estimator=EMA(0.05, rule=rule)) as processor:  # type: ignore[arg-type]
            for batch in batches:
                processor(batch)
            found[rule] = model.running_var.item()
    assert found["pytorch"] < 1e-6
    assert 0.5 < found["mixture"] < 2.0


@pytest.mark.parametrize(
    "estimator", [BatchStatistics(), SourcePrior(16.0), AlphaBN(0.3)], ids=repr
)
def test_synchronous_methods_normalise_by_what_they_say(estimator: Estimator) -> None:
    model = nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        model.running_mean.fill_(1.0)
        model.running_var.fill_(4.0)
    batch = frames(8, gain=2.0, offset=3.0)
    values = batch.double().numpy()
    mean, var = values.mean(axis=(0, 2, 3)), values.var(axis=(0, 2, 3))
    if isinstance(estimator, SourcePrior):
        mean, var = (16 * 1.0 + 8 * mean) / 24, (16 * 4.0 + 8 * var) / 24
    if isinstance(estimator, AlphaBN):
        mean, var = 0.7 * 1.0 + 0.3 * mean, 0.7 * 4.0 + 0.3 * var
    wanted = (values - mean[:, None, None]) / np.sqrt(var + model.eps)[:, None, None]
    with StreamProcessor(model, estimator=estimator, timing="synchronous") as processor:
        for _ in range(2):  # nothing is remembered
            output = processor(batch).detach()
            np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)
