"""Policies that learn scale and shift, against their papers' formulas in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streamadapt.errors import ConfigurationError, DataError, UnsupportedModelError
from streamadapt.events import RolledBack
from streamadapt.replay.digits import digits, digits_network, normalize, upscale
from streamadapt.replay.policies.eata import EATAPolicy
from streamadapt.replay.policies.gradient import GradientPolicy
from streamadapt.replay.policies.rdumb import RDumbPolicy
from streamadapt.replay.policies.sar import SARPolicy
from streamadapt.replay.policies.tent import TentPolicy
from tests.unit.replay.gradient_reference import (
    CLASSES,
    SGD,
    Adam,
    Array,
    EATAReference,
    Reference,
    SARReference,
    affine,
    batches,
    entropies,
    forward,
    gradient,
    network,
)

FILTERING = pytest.mark.parametrize("kind", [EATAPolicy, RDumbPolicy, SARPolicy])
EVERY = pytest.mark.parametrize("kind", [TentPolicy, EATAPolicy, RDumbPolicy, SARPolicy])


def assert_follows(
    policy: GradientPolicy, reference: Reference, step: Callable[[Array], Any], count: int = 6
) -> None:
    """Same answers, from before the step, and same parameters after it, batch after batch."""
    for batch in batches(count):
        x = batch.numpy()
        expected = reference.scores(x)
        with torch.no_grad():
            answer = policy(batch)
        step(x)
        np.testing.assert_allclose(answer.numpy(), expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(affine(policy.model), reference.theta, rtol=1e-7, atol=1e-9)


# ---- Tent


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_tent_descends_the_mean_entropy(optimizer: Any) -> None:
    policy = TentPolicy(learning_rate=0.02, optimizer=optimizer)
    policy.start(network())
    reference = Reference(network(), Adam(0.02) if optimizer == "adam" else SGD(0.02))

    def step(x: Array) -> None:
        slope = gradient(lambda t: float(entropies(reference.scores(x, t)).mean()), reference.theta)
        reference.theta = reference.optimizer.step(reference.theta, slope)

    assert_follows(policy, reference, step)
    assert np.abs(reference.theta - affine(network())).max() > 0.02


def test_tent_on_source_statistics_answers_like_the_model_first() -> None:
    policy = TentPolicy(statistics="source")
    policy.start(network())
    (batch,) = batches(1)
    with torch.no_grad():
        torch.testing.assert_close(policy(batch), network()(batch), rtol=0, atol=0)
        assert not torch.equal(policy.predict(batch), network()(batch))


# ---- EATA, ETA, RDumb


@pytest.mark.parametrize("alpha", [0.0, 300.0])
def test_eata_learns_from_what_is_certain_and_new(alpha: float) -> None:
    calibration = batches(5, frames=20)  # 100 frames: a batch of 64 and one of 36
    policy = EATAPolicy(learning_rate=0.05, d_margin=0.85, fisher_alpha=alpha)
    policy.start(network(), calibration=calibration)
    reference = EATAReference(network(), SGD(0.05), alpha=alpha)
    reference.measure(torch.cat(calibration).numpy())
    assert_follows(policy, reference, reference.step, count=16)
    # Each rule had something to say.
    assert min(reference.unreliable, reference.redundant, reference.learned) >= 5
    assert np.abs(reference.theta - reference.source).max() > 0.02


def test_the_anchor_holds_parameters_near_the_source() -> None:
    moved = []
    for alpha in (0.0, 3000.0):
        policy = EATAPolicy(learning_rate=0.001, d_margin=2.0, fisher_alpha=alpha)
        policy.start(network(), calibration=batches(2))
        source = affine(policy.model)
        with torch.no_grad():
            for batch in batches(30):
                policy(batch)
        moved.append(np.linalg.norm(affine(policy.model) - source))
    assert moved[1] < 0.7 * moved[0]


def test_an_anchor_needs_source_frames_and_finite_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"`eata` anchors .* `calibrate` part, or set"):
        EATAPolicy().start(network())
    EATAPolicy(fisher_alpha=0).start(network())
    (broken,) = batches(1)
    broken[3, 2] = torch.nan
    with pytest.raises(DataError, match=r"no finite gradient .* Leave out frames"):
        EATAPolicy().start(network(), calibration=[broken])


def test_rdumb_is_eta_started_afresh_every_so_many_batches() -> None:
    policy = RDumbPolicy(learning_rate=0.05, d_margin=0.9, reset_every=4)
    policy.start(network())
    stream = batches(10)
    fresh: EATAPolicy | None = None
    for index, batch in enumerate(stream):
        if index % 4 == 0:
            fresh = EATAPolicy(learning_rate=0.05, d_margin=0.9, fisher_alpha=0)
            fresh.start(network())
        assert fresh is not None
        with torch.no_grad():
            torch.testing.assert_close(policy(batch), fresh(batch), rtol=0, atol=0)
        np.testing.assert_array_equal(affine(policy.model), affine(fresh.model))
        expected = [index] if index in (4, 8) else []
        assert list(policy.events()) == [
            RolledBack(step=step, to="source", streams=(), reason="schedule") for step in expected
        ]
    assert np.abs(affine(policy.model) - affine(network())).max() > 1e-3


# ---- SAR


def test_sar_descends_from_the_worst_point_nearby() -> None:
    policy = SARPolicy(learning_rate=0.05, rho=0.5, reset_below=0)
    policy.start(network())
    reference = SARReference(network(), SGD(0.05))
    assert_follows(policy, reference, reference.step, count=16)
    assert min(reference.unreliable, reference.no_longer) >= 5
    assert policy.events() == []


def test_sar_starts_over_when_the_mean_loss_falls() -> None:
    policy = SARPolicy(learning_rate=0.3, rho=0.05, reset_below=0.1)
    policy.start(network())
    reference = SARReference(network(), SGD(0.3), rho=0.05, reset_below=0.1)
    assert_follows(policy, reference, reference.step, count=16)
    assert len(reference.resets) == 2
    assert list(policy.events()) == [
        RolledBack(step=step, to="source", streams=(), reason="loss") for step in reference.resets
    ]


def test_sar_leaves_the_last_layers_out() -> None:
    policy = SARPolicy(learning_rate=0.05, rho=0.5, reset_below=0, skip_last_layers=1)
    policy.start(network())
    reference = SARReference(network(), SGD(0.05), free=slice(0, 10))
    assert_follows(policy, reference, reference.step)
    with pytest.raises(ConfigurationError, match=r"`skip_last_layers` must leave .* has 2, got 2"):
        SARPolicy(skip_last_layers=2).start(network())


# ---- all of them


def policy_of(kind: type[GradientPolicy], **parameters: Any) -> Any:
    """Fast learners, on any number of classes."""
    settings: dict[str, Any] = {"learning_rate": 0.01, **parameters}
    if issubclass(kind, EATAPolicy):
        settings = {"d_margin": 2.0, **settings}
    if kind is EATAPolicy:
        settings = {"fisher_alpha": 1.0, **settings}
    if kind is RDumbPolicy:
        settings = {"reset_every": 3, **settings}
    if kind is SARPolicy:
        settings = {"reset_below": 0.0, **settings}
    return kind(**settings)


def digit_batches(count: int, *, frames: int = 10) -> list[torch.Tensor]:
    images = upscale(digits()[0][: count * frames])
    generator = torch.Generator().manual_seed(1)
    x = normalize(images)
    x = 0.6 * x + 0.2 * torch.randn(x.shape, generator=generator)
    return list(x.split(frames))


@EVERY
def test_on_the_digits_predict_changes_nothing_and_reset_everything(
    kind: type[GradientPolicy],
) -> None:
    stream = digit_batches(5)
    model = digits_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    policy = policy_of(kind)
    policy.start(model, calibration=stream[:1])
    with torch.no_grad():
        plain = [policy(batch) for batch in stream]
        learned = {name: value.clone() for name, value in policy.model.state_dict().items()}
        policy.reset()
        watched = []
        for batch in stream:
            policy.predict(stream[0])
            watched.append(policy(batch))
        policy.reset()
        policy.predict(stream[1])
        again = [policy(batch) for batch in stream]
    for one, two, three in zip(plain, watched, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
        assert one.shape == (10, 10)
        assert not one.requires_grad
    moved = {name for name, value in learned.items() if not torch.equal(value, before[name])}
    assert moved == {f"stages.{i}.bn.{part}" for i in range(5) for part in ("weight", "bias")}
    assert policy.distance() is None
    policy.finish()
    policy.finish()


@EVERY
def test_predict_answers_with_what_was_learned(kind: type[GradientPolicy]) -> None:
    stream = batches(3)
    policy = policy_of(kind, learning_rate=0.5)
    policy.start(network(), calibration=stream[:1])
    with torch.no_grad():
        for batch in stream[:2]:
            policy(batch)
        learned = policy.predict(stream[2])
    expected = forward(network(), affine(policy.model), stream[2].numpy())
    np.testing.assert_allclose(learned.numpy(), expected, rtol=1e-9, atol=1e-11)
    untouched = forward(network(), affine(network()), stream[2].numpy())
    assert np.abs(expected - untouched).max() > 0.01


@EVERY
def test_frames_that_are_not_numbers_teach_nothing(kind: type[GradientPolicy]) -> None:
    good, other, broken = batches(3)
    broken[2, 1] = torch.nan
    policy = policy_of(kind)
    policy.start(network(), calibration=[good])
    alone = policy_of(kind)
    alone.start(network(), calibration=[good])
    with torch.no_grad():
        policy(good)
        assert policy(broken).shape == (12, CLASSES)
        alone(good)
        assert torch.equal(policy(other), alone(other))


@FILTERING
def test_a_batch_without_a_certain_frame_teaches_nothing(kind: type[GradientPolicy]) -> None:
    stream = batches(2)
    policy = policy_of(kind, e_margin=1e-9)
    policy.start(network(), calibration=stream[:1])
    with torch.no_grad():
        for batch in stream:
            policy(batch)
    np.testing.assert_array_equal(affine(policy.model), affine(network()))


@FILTERING
def test_momentum_alone_moves_nothing(kind: type[GradientPolicy]) -> None:
    (good,) = batches(1)
    policy = policy_of(kind)
    policy.start(network(), calibration=[good])
    with torch.no_grad():
        policy(good)
        learned = affine(policy.model)
        assert np.abs(learned - affine(network())).max() > 0
        policy.e_margin = 1e-9
        policy(good)
    np.testing.assert_array_equal(affine(policy.model), learned)


@EVERY
def test_one_frame_is_normalised_by_its_positions_or_by_the_source(
    kind: type[GradientPolicy],
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ).append(nn.BatchNorm1d(4))
        model.append(nn.Linear(4, CLASSES)).eval()
        nn.init.normal_(model[1].bias)
        nn.init.uniform_(model[4].running_mean)
    frame = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        z = model[0](frame)
        z = (z - z.mean((2, 3), keepdim=True)) / (
            z.var((2, 3), keepdim=True, correction=0) + 1e-5
        ).sqrt()
        z = (z * model[1].weight[:, None, None] + model[1].bias[:, None, None]).mean((2, 3))
        expected = model[5](model[4](z))  # source statistics: the mean is what it is
    policy = policy_of(kind, **({} if kind is TentPolicy else {"e_margin": 1.0}))
    policy.start(model, calibration=[frame.repeat(4, 1, 1, 1)])
    before = affine(policy.model)
    with torch.no_grad():
        torch.testing.assert_close(policy(frame), expected)
        assert torch.isfinite(policy(frame)).all()
    assert np.isfinite(affine(policy.model)).all()
    assert np.abs(affine(policy.model) - before).max() > 0


@EVERY
def test_dropout_is_off_and_the_rest_is_frozen(kind: type[GradientPolicy]) -> None:
    model = network().insert(3, nn.Dropout(0.5))
    (batch,) = batches(1)
    policy = policy_of(kind)
    policy.start(model, calibration=[batch])
    with torch.no_grad():
        assert torch.equal(policy.predict(batch), policy.predict(batch))
    trainable = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trainable == {"1.weight", "1.bias", "5.weight", "5.bias"}


@EVERY
def test_a_model_without_batchnorm_is_refused(kind: type[GradientPolicy]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"Sequential has no BatchNorm layer .* Choose"):
        policy_of(kind).start(nn.Sequential(nn.Linear(4, 3)), calibration=batches(1))


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (TentPolicy, {"learning_rate": 0}, r"`learning_rate` must be above 0, got 0\."),
        (TentPolicy, {"optimizer": "lion"}, r'`optimizer` must be "adam" or "sgd", got \'lion\'\.'),
        (TentPolicy, {"momentum": 1.0}, r"`momentum` must be in \[0, 1\), got 1\.0\."),
        (TentPolicy, {"statistics": "both"}, r'`statistics` must be "batch" or "source"'),
        (EATAPolicy, {"e_margin": 2.0}, r"`e_margin` must be in \(0, 1\], a share of ln C"),
        (EATAPolicy, {"d_margin": 0}, r"`d_margin` must be above 0"),
        (EATAPolicy, {"fisher_alpha": -1}, r"`fisher_alpha` must be 0 \(no anchor\) or more"),
        (RDumbPolicy, {"reset_every": 0}, r"`reset_every` must be at least 1 batch"),
        (SARPolicy, {"e_margin": 0}, r"`e_margin` must be in \(0, 1\]"),
        (SARPolicy, {"rho": -0.1}, r"`rho` must be 0 or more"),
        (SARPolicy, {"reset_below": -1}, r"`reset_below` must be 0 \(no reset\) or more"),
        (SARPolicy, {"skip_last_layers": -1}, r"`skip_last_layers` must be 0 or more"),
    ],
)
def test_wrong_settings_are_named(
    kind: Callable[..., GradientPolicy], parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        kind(**parameters)
