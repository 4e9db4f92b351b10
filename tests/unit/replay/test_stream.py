"""The stream: what a seed fixes, and what it does not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamadapt.errors import DataError
from streamadapt.replay.data import LabelledData
from streamadapt.replay.scenario import Domain, Scenario
from streamadapt.replay.scores import run_lengths
from streamadapt.replay.stream import GROUP_FRAMES, Batch, Stream, class_correlated_order

DOMAINS = (
    Domain("clear", 90),
    Domain("noise", 150, "gaussian_noise", 3),
    Domain("fog", 70, "fog", 5),
)


@pytest.fixture(scope="module")
def data() -> LabelledData:
    rng = np.random.default_rng(1)
    return LabelledData(
        rng.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8), np.arange(200, dtype=np.int64) % 5
    )


def scenario(**changes: Any) -> Scenario:
    values: dict[str, Any] = {"name": "s", "domains": DOMAINS, "seed": 3, "batch_size": 16}
    return Scenario(**{**values, **changes})


def frames_of(batches: list[Batch], domain: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own = [batch for batch in batches if batch.domain_index == domain]
    return tuple(  # type: ignore[return-value]
        np.concatenate([getattr(batch, field) for batch in own])
        for field in ("frames", "labels", "ids")
    )


def assert_same(one: list[Batch], other: list[Batch], domain: int, other_domain: int) -> None:
    for left, right in zip(frames_of(one, domain), frames_of(other, other_domain), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("order", ["iid", "dirichlet"])
def test_same_seed_same_stream_to_the_bit(data: LabelledData, order: Any) -> None:
    first, second = (list(Stream(scenario(order=order), data=data)) for _ in range(2))
    stream = Stream(scenario(order=order), data=data)
    again = [list(stream), list(stream)][1]
    for domain in range(3):
        assert_same(first, second, domain, domain)
        assert_same(first, again, domain, domain)
    other = list(Stream(scenario(order=order, seed=4), data=data))
    assert (frames_of(first, 1)[2] != frames_of(other, 1)[2]).any()


@pytest.mark.parametrize("batch_size", [1, 7, GROUP_FRAMES, 1000])
def test_frames_do_not_depend_on_the_batch_size(data: LabelledData, batch_size: int) -> None:
    usual = list(Stream(scenario(), data=data))
    other = list(Stream(scenario(batch_size=batch_size), data=data))
    for domain in range(3):
        assert_same(usual, other, domain, domain)


def test_a_domain_does_not_depend_on_the_lengths_of_the_others(data: LabelledData) -> None:
    usual = list(Stream(scenario(), data=data))
    shorter = (Domain("clear", 5), DOMAINS[1], Domain("fog", 400, "fog", 1))
    assert_same(usual, list(Stream(scenario(domains=shorter), data=data)), 1, 1)
    alone = list(Stream(scenario(), data=data).domain(2))
    assert_same(usual, alone, 2, 2)


def test_batches_cover_the_domains_and_never_cross_them(data: LabelledData) -> None:
    stream = Stream(scenario(), data=data)
    batches = list(stream)
    assert len(batches) == len(stream)
    assert [len(batch.ids) for batch in batches if batch.domain_index == 0] == [16] * 5 + [10]
    place = 0
    for batch in batches:
        assert batch.start_index == place
        assert len(batch.frames) == len(batch.labels) == len(batch.ids)
        np.testing.assert_array_equal(batch.labels, data.y[batch.ids])
        place += len(batch.ids)
    assert place == 310
    for domain, spec in enumerate(DOMAINS):
        np.testing.assert_array_equal(stream.labels(domain), frames_of(batches, domain)[1])
        assert len(stream.labels(domain)) == spec.samples


def test_clean_frames_are_the_data_and_corrupted_ones_are_not(data: LabelledData) -> None:
    batches = list(Stream(scenario(), data=data))
    frames, _, ids = frames_of(batches, 0)
    np.testing.assert_array_equal(frames, data.x[ids])
    frames, _, ids = frames_of(batches, 2)
    assert (frames != data.x[ids]).mean() > 0.9


def test_samples_come_once_until_the_data_are_used_up(data: LabelledData) -> None:
    long = scenario(domains=(Domain("all", 500),))
    _, _, ids = frames_of(list(Stream(long, data=data)), 0)
    assert sorted(ids[:200]) == sorted(ids[200:400]) == list(range(200))
    assert (ids[:200] != ids[200:400]).any()
    assert len(set(ids[400:])) == 100


def test_dirichlet_order_shows_the_same_frames_in_longer_runs(data: LabelledData) -> None:
    domains = (Domain("all", 200),)
    mean_runs = {}
    for alpha in (None, 100.0, 1.0, 0.05):
        changes = {"order": "dirichlet", "dirichlet_alpha": alpha} if alpha else {}
        stream = Stream(scenario(domains=domains, **changes), data=data)
        labels = stream.labels(0)
        assert np.bincount(labels).tolist() == [40] * 5
        mean_runs[alpha] = run_lengths(labels).mean()
    assert mean_runs[None] < 2
    assert mean_runs[None] < mean_runs[100.0] < mean_runs[1.0] < mean_runs[0.05]


def test_class_correlated_order_is_a_permutation_of_slots() -> None:
    labels = np.repeat(np.arange(10), 37)
    order = class_correlated_order(labels, alpha=0.5, rng=np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(370))
    # With ten classes in ten slots there are at most a hundred runs.
    assert len(run_lengths(labels[order])) <= 100
    single = class_correlated_order(np.zeros(4, np.int64), alpha=0.1, rng=np.random.default_rng(0))
    assert sorted(single.tolist()) == [0, 1, 2, 3]


def test_too_small_images_are_refused_before_the_run() -> None:
    tiny = LabelledData(np.zeros((3, 8, 4, 3), np.uint8), np.zeros(3, np.int64))
    with pytest.raises(DataError, match="have 8 x 4 pixels, at least 8 x 8 are needed"):
        Stream(scenario(), data=tiny)
