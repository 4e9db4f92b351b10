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
def test_every_policy_answers_in_the_shape_of_the_model(policy: Policy) -> None:
    assert isinstance(policy, Policy)
    with torch.inference_mode():
        policy.start(network())
        if policy.oracle:
            policy.domain_started([frames(), frames()])
        assert policy(frames()).shape == (6, 3)
        distance = policy.distance()
        assert distance is None or distance >= 0
        policy.events()
        policy.finish()


def test_frozen_answers_like_the_model() -> None:
    policy = FrozenPolicy()
    policy.start(network())
    torch.testing.assert_close(policy(frames()), network()(frames()), rtol=0, atol=0)


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


def test_a_processor_policy_adapts_reports_and_lets_go() -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    heard: list[object] = []
    policy = ProcessorPolicy("ema", sa.estimators.EMA(momentum=0.5), on_event=heard.append)
    policy.start(model)
    assert policy.distance() == pytest.approx(0, abs=1e-6)
    policy(frames(shift=3))
    moved = policy.distance()
    assert moved is not None
    assert moved > 0
    policy(torch.full((2, 3, 8, 8), float("nan")))
    kinds = [type(event).__name__ for event in policy.events()]
    assert "FramesRejected" in kinds
    assert policy.events() == []
    assert len(heard) >= len(kinds)
    policy.finish()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


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
    ],
)
def test_wrong_policies_get_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        build(**values)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)
