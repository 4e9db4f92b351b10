"""Policies: built from a scenario, or in Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import streamadapt as sa
from streamadapt.errors import ConfigurationError, ScenarioError
from streamadapt.replay.policies import (
    AdaBNPolicy,
    FrozenPolicy,
    Policy,
    ProcessorPolicy,
    build_policy,
)
from streamadapt.replay.scenario import PolicySpec


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return layers.append(nn.Linear(4, 3)).eval()


def frames(count: int = 6, *, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + shift


@pytest.mark.parametrize(
    "policy",
    [
        FrozenPolicy(),
        AdaBNPolicy(),
        ProcessorPolicy("ema", sa.estimators.EMA(momentum=0.1)),
        ProcessorPolicy("batch", sa.estimators.BatchStatistics(), timing="synchronous"),
    ],
    ids=lambda policy: policy.name,
)
@torch.no_grad()
def test_every_policy_answers_in_the_shape_of_the_model(policy: Policy) -> None:
    assert isinstance(policy, Policy)
    policy.start(network(), calibration=[frames()], cameras=())
    if policy.oracle:
        policy.domain_started([frames(), frames()])
    assert policy(frames()).shape == (6, 3)
    assert policy.predict(frames()).shape == (6, 3)
    distance = policy.distance()
    if distance is not None:
        assert set(distance) == {"1"}
        assert all(value >= 0 for value in distance.values())
    policy.events()
    policy.reset()
    policy.finish()


@torch.no_grad()
def test_frozen_answers_like_the_model() -> None:
    policy = FrozenPolicy()
    policy.start(network())
    for answer in (policy(frames()), policy.predict(frames())):
        torch.testing.assert_close(answer, network()(frames()), rtol=0, atol=0)
    assert policy.distance() is None


@torch.no_grad()
def test_the_oracle_starts_from_the_source_in_every_domain() -> None:
    policy = AdaBNPolicy()
    policy.start(network())
    policy.domain_started([frames(shift=5)])
    elsewhere = policy(frames())
    policy.domain_started([frames()])
    back = policy(frames())
    fresh = AdaBNPolicy()
    fresh.start(network())
    fresh.domain_started([frames()])
    torch.testing.assert_close(back, fresh(frames()), rtol=0, atol=0)
    assert not torch.equal(back, elsewhere)
    policy.reset()
    torch.testing.assert_close(policy(frames()), network()(frames()), rtol=0, atol=0)


def test_a_processor_policy_adapts_reports_and_lets_go() -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    heard: list[object] = []
    policy = ProcessorPolicy("ema", sa.estimators.EMA(momentum=0.5), on_event=heard.append)
    policy.start(model)
    assert policy.distance() == {"1": pytest.approx(0, abs=1e-6)}
    policy(frames(shift=3))
    assert policy.distance()["1"] > 0.1
    policy(torch.full((2, 3, 8, 8), float("nan")))
    kinds = [type(event).__name__ for event in policy.events()]
    assert "FramesRejected" in kinds
    assert policy.events() == []
    assert len(heard) >= len(kinds)
    policy.finish()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def ema(*, cameras: tuple[str, ...] = ()) -> ProcessorPolicy:
    policy = ProcessorPolicy("ema", sa.estimators.EMA(momentum=0.5), timing="synchronous")
    policy.start(network(), cameras=cameras)
    return policy


@torch.no_grad()
def test_a_processor_policy_predicts_with_what_it_has_learned() -> None:
    policy = ema()
    policy(frames(shift=3))
    policy.events()
    # The even mixture of the source (mean 0, variance 1) and the batch.
    source = network()
    x = source[0](frames(shift=3))
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    source[1].running_mean = mean / 2
    source[1].running_var = (1 + var) / 2 + mean.square() / 4
    distance = policy.distance()
    torch.testing.assert_close(policy.predict(frames()), source(frames()), rtol=1e-4, atol=1e-5)
    assert policy.distance() == distance
    assert policy.events() == []


@torch.no_grad()
def test_predicting_leaves_a_processor_policy_as_it_was() -> None:
    policy, other = ema(), ema()
    for shift in (3.0, 1.0, -2.0):
        policy.predict(frames(shift=7))
        assert torch.equal(policy(frames(shift=shift)), other(frames(shift=shift)))


@pytest.mark.parametrize("timing", ["synchronous", "lagged"])
@torch.no_grad()
def test_a_processor_policy_goes_back_to_the_source(timing: Any) -> None:
    policy, fresh = (
        ProcessorPolicy("ema", sa.estimators.EMA(momentum=0.5), timing=timing) for _ in range(2)
    )
    for each in (policy, fresh):
        each.start(network())
    policy(frames(shift=3))
    policy.events()
    policy.reset()
    assert policy.distance() == {"1": pytest.approx(0, abs=1e-6)}
    assert [(type(e).__name__, e.to) for e in policy.events()] == [("RolledBack", "source")]
    for shift in (0.0, 2.0):
        assert torch.equal(policy(frames(shift=shift)), fresh(frames(shift=shift)))


@torch.no_grad()
def test_each_camera_has_statistics_of_its_own() -> None:
    names = ("left", "right")
    together = ema(cameras=names)
    alone = {name: ema(cameras=(name,)) for name in names}
    for shift in (0.0, 1.0):
        mine = {"left": frames(3, shift=shift), "right": frames(3, shift=-4 - shift)}
        batch = torch.stack([mine["left"], mine["right"]], 1).flatten(0, 1)
        answer = together(batch, streams=names * 3)
        for k, name in enumerate(names):
            expected = alone[name](mine[name], streams=[name] * 3)
            torch.testing.assert_close(answer[k::2], expected, rtol=1e-4, atol=1e-5)
    left, right = (alone[name].distance()["1"] for name in names)
    assert left != pytest.approx(right, rel=0.1)
    assert together.distance() == {"1": pytest.approx((left + right) / 2, rel=1e-3)}
    together.reset()
    assert together.distance() == {"1": pytest.approx(0, abs=1e-6)}


def build(**values: Any) -> Policy:
    return build_policy(PolicySpec("p", **values))


def test_a_scenario_builds_every_kind() -> None:
    assert isinstance(build(kind="frozen"), FrozenPolicy)
    oracle = build(kind="adabn", parameters={"method": "layerwise"})
    assert isinstance(oracle, AdaBNPolicy)
    assert oracle.oracle
    assert oracle.method == "layerwise"
    ema = build(estimator="EMA", parameters={"momentum": 0.25})
    assert isinstance(ema, ProcessorPolicy)
    assert "0.25" in ema.description
    assert ema.name == "p"
    assert isinstance(build(), ProcessorPolicy)


@pytest.mark.parametrize(
    ("kind", "parameters", "kept"),
    [
        ("tent", {"optimizer": "sgd", "learning_rate": 2.5e-4}, "sgd at 0.00025"),
        ("eata", {"fisher_alpha": 1.0}, "fisher_alpha=1"),
        ("eata", {"fisher_alpha": 0}, "ETA"),
        ("rdumb", {"reset_every": 50}, "every 50 batches"),
        ("sar", {"rho": 0.1}, "rho=0.1"),
    ],
)
def test_a_scenario_builds_what_learns_by_gradient(
    kind: Any, parameters: dict[str, Any], kept: str
) -> None:
    policy = build(kind=kind, parameters=parameters)
    assert isinstance(policy, Policy)
    assert policy.name == "p"
    assert kept in policy.description
    assert not policy.oracle


def test_an_estimator_with_one_timing_needs_none_named() -> None:
    with torch.inference_mode():
        policy = build(estimator="BatchStatistics")
        policy.start(network())
        policy(frames())
        policy.finish()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"estimator": "Ema"},
            r"policy `p`: unknown estimator `Ema`\. Known: .*BatchStatistics.*EMA.*Welford\.",
        ),
        (
            {"estimator": "EMA", "parameters": {"momentun": 0.1}},
            r"policy `p`: EMA has no parameter `momentun`\. Its parameters: .*momentum",
        ),
        ({"estimator": "EMA", "parameters": {"momentum": 2.0}}, r"policy `p`: .*momentum.*2\.0"),
        ({"estimator": "EMA", "parameters": {"momentum": "fast"}}, r"policy `p`: "),
        ({"estimator": "Estimator"}, r"policy `p`: unknown estimator `Estimator`"),
        (
            {"estimator": "BatchStatistics", "timing": "lagged"},
            r"policy `p`: BatchStatistics does not run with timing `lagged`\. Set timing = ",
        ),
        ({"kind": "frozen", "parameters": {"x": 1}}, r"FrozenPolicy has no parameter `x`"),
        ({"kind": "adabn", "parameters": {"method": "fast"}}, r'`method` must be "one_pass" or'),
        ({"kind": "tent", "parameters": {"rho": 1}}, r"TentPolicy has no parameter `rho`\. Its"),
        ({"kind": "sar", "parameters": {"rho": -1}}, r"policy `p`: `rho` must be 0 or more, got"),
        ({"kind": "eata", "parameters": {"d_margin": "low"}}, r"policy `p`: "),
    ],
)
def test_wrong_policies_get_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        build(**values)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)
