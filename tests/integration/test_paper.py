"""The paper's experiments run, on few digits, and their parts keep their laws."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import streamadapt as sa
from benchmarks.paper import how_many_images, systems, which_layers
from benchmarks.paper.claims import Claim, Outcome
from benchmarks.paper.worlds import norm_layers, right_answers, worlds
from streamadapt.replay.bootstrap import Interval


@pytest.mark.parametrize(
    "experiment",
    [how_many_images.experiment, which_layers.experiment, systems.experiment],
    ids=["how many images", "which layers", "systems"],
)
def test_an_experiment_runs_and_its_results_are_strict_json(experiment: object) -> None:
    outcome = experiment(worlds(quick=True)["digits"], True)  # type: ignore[operator]
    assert isinstance(outcome, Outcome)
    assert outcome.claims
    json.dumps(outcome.results, allow_nan=False)


def test_a_prior_lies_between_source_and_target() -> None:
    world = worlds(quick=True)["digits"]
    source = world.model()
    target = sa.adabn(source, [world.images("fog", "tune")])
    half = how_many_images.with_prior(source, target, images=how_many_images.PRIOR_IMAGES)
    for name in norm_layers(source):
        before, after, mixed = (m.get_submodule(name) for m in (source, target, half))
        torch.testing.assert_close(
            mixed.running_mean, (before.running_mean + after.running_mean) / 2
        )
        torch.testing.assert_close(mixed.running_var, (before.running_var + after.running_var) / 2)


def test_the_coral_loss_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(20, 5)) * 2
    difference = np.cov(a, rowvar=False) - np.cov(b, rowvar=False)
    expected = (difference**2).sum() / (4 * 5**2)
    found = systems.coral_loss(torch.from_numpy(a), torch.from_numpy(b))
    assert float(found) == pytest.approx(expected)


def test_fine_tuning_leaves_the_source_and_the_statistics_alone() -> None:
    world = worlds(quick=True)["digits"]
    source, images = world.model(), world.images("none", "tune")
    before = {name: value.clone() for name, value in source.state_dict().items()}
    labels = torch.from_numpy(world.labels("tune"))
    tuned = systems.fine_tuned(
        source, images, labels, world.images("fog", "tune"), weight=1.0, steps=2
    )
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    after = tuned.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if "running" in name)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_groups_hold_every_layer_once_in_order() -> None:
    model = worlds(quick=True)["digits"].model()
    groups = which_layers.depth_groups(model, count=3)
    assert [name for group in groups for name in group] == norm_layers(model)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_parts_of_a_world_do_not_overlap_and_domains_keep_their_labels() -> None:
    world = worlds()["digits"]
    tune, test = (set(world.split.part(name).tolist()) for name in ("tune", "test"))
    assert not tune & test
    assert len(world.images("fog", "test")) == len(world.labels("test"))
    clean = right_answers(world.model(), world.images("none", "test"), world.labels("test"))
    assert clean.mean() > 0.95
    assert np.array_equal(world.images("fog", "test").numpy(), world.images("fog", "test").numpy())


@pytest.mark.parametrize(
    ("low", "high", "below", "verdict"),
    [
        (-2.0, -1.0, True, "confirmed"),
        (-2.0, -1.0, False, "refuted"),
        (1.0, 2.0, True, "refuted"),
        (1.0, 2.0, False, "confirmed"),
        (-1.0, 1.0, True, "undecided"),
    ],
)
def test_a_claim_is_no_surer_than_its_interval(
    low: float, high: float, below: bool, verdict: str
) -> None:
    claim = Claim("so", Interval(low, (low + high) / 2, high), below=below)
    assert claim.verdict == verdict
