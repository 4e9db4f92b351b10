"""The stream: what a seed fixes, and what it does not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamadapt.errors import DataError
from streamadapt.replay.data import LabelledData
from streamadapt.replay.orders import class_correlated_order, long_tailed
from streamadapt.replay.scenario import Domain, Scenario
from streamadapt.replay.scores import run_lengths
from streamadapt.replay.split import Split
from streamadapt.replay.stream import GROUP_FRAMES, Batch, Stream

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
    return tuple(  # type: ignore[return-value]
        np.concatenate([getattr(batch, field)[batch.domains == domain] for batch in batches])
        for field in ("frames", "labels", "ids")
    )


def all_of(stream: Stream, field: str) -> np.ndarray:
    return np.concatenate([getattr(batch, field) for batch in stream])


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
    alone = np.concatenate(list(Stream(scenario(), data=data).frames_of(2)))
    np.testing.assert_array_equal(frames_of(usual, 2)[0], alone)


def test_batches_cover_the_domains_and_never_cross_them(data: LabelledData) -> None:
    stream = Stream(scenario(), data=data)
    batches = list(stream)
    assert len(batches) == len(stream)
    assert [len(batch.ids) for batch in batches if batch.domains[0] == 0] == [16] * 5 + [10]
    assert all(len(set(batch.domains)) == 1 for batch in batches)
    assert stream.starts == {0, 6, 16}
    place = 0
    for batch in batches:
        assert batch.start_index == place
        assert len(batch.frames) == len(batch.labels) == len(batch.ids)
        np.testing.assert_array_equal(batch.labels, data.y[batch.ids])
        place += len(batch.ids)
    assert place == 310
    assert stream.frame_count == 310
    for span, spec in zip(stream.spans, DOMAINS, strict=True):
        assert (span.name, span.frames, span.corruption) == (
            spec.name,
            spec.samples,
            spec.corruption,
        )
    assert [span.first_frame for span in stream.spans] == [0, 90, 240]
    assert [span.severity for span in stream.spans] == [(), (3,), (5,)]


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
        labels = all_of(stream, "labels")
        assert stream.spans[0].mean_run_length == run_lengths(labels).mean()
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


# Orders ------------------------------------------------------------------------------------------


def test_a_gradual_domain_goes_through_its_severities(data: LabelledData) -> None:
    # Flat light: the contrast of a frame tells its severity.
    up_and_down = (1, 2, 3, 4, 5, 4, 3, 2, 1)
    domains = (Domain("flat", 180, "contrast", up_and_down),)
    frames = all_of(Stream(scenario(domains=domains), data=data), "frames").astype(float)
    contrast = frames.std(axis=(1, 2, 3)).reshape(9, 20).mean(axis=1)
    assert (np.diff(contrast)[:4] < 0).all()
    assert (np.diff(contrast)[4:] > 0).all()
    np.testing.assert_allclose(contrast[:4], contrast[:4:-1], rtol=0.05)


def test_where_the_severity_changes_the_pattern_goes_on(data: LabelledData) -> None:
    two, one = ((Domain("fog", 60, "fog", level),) for level in ((2, 4), 4))
    mixed = all_of(Stream(scenario(domains=two), data=data), "frames")
    plain = all_of(Stream(scenario(domains=one), data=data), "frames")
    np.testing.assert_array_equal(mixed[30:], plain[30:])
    assert (mixed[:30] != plain[:30]).any()


def test_domains_that_come_back_bring_other_images_in_another_order(data: LabelledData) -> None:
    domains = (Domain("clear", 40), Domain("noise", 40, "gaussian_noise", 3), Domain("dim", 40))
    stream = Stream(scenario(domains=domains, visits=5), data=data)
    batches = list(stream)
    assert [span.visit for span in stream.spans] == sorted([0, 1, 2, 3, 4] * 3)
    orders = [tuple(s.name for s in stream.spans if s.visit == visit) for visit in range(5)]
    assert orders[0] == ("clear", "noise", "dim")
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len(set(orders)) > 1
    for name in orders[0]:
        visits = [n for n, span in enumerate(stream.spans) if span.name == name]
        ids = np.concatenate([frames_of(batches, number)[2] for number in visits])
        assert sorted(ids) == list(range(200))  # 5 visits of 40: every image once
    once = list(Stream(scenario(domains=domains), data=data))
    for number in range(3):
        assert_same(once, batches, number, number)


@pytest.mark.parametrize("order", ["iid", "dirichlet"])
def test_a_mixed_stream_has_all_domains_in_its_batches(data: LabelledData, order: Any) -> None:
    domains = tuple(Domain(d.name, 160, d.corruption, d.severity) for d in DOMAINS)
    stream = Stream(scenario(domains=domains, arrangement="mixed", order=order), data=data)
    batches = list(stream)
    assert stream.starts == {0}
    assert all(len(set(batch.domains)) == 3 for batch in batches)
    assert np.bincount(np.concatenate([b.domains for b in batches])).tolist() == [160] * 3
    sequential = list(Stream(scenario(domains=domains), data=data))
    for domain in range(3):  # the very same frames, each spoilt as in its own domain
        shown, known = frames_of(batches, domain), frames_of(sequential, domain)
        one, other = (
            np.lexsort((*frames.reshape(160, -1).T[:4],)) for frames, *_ in (shown, known)
        )
        np.testing.assert_array_equal(shown[0][one], known[0][other])
    runs = run_lengths(np.concatenate([batch.labels for batch in batches])).mean()
    assert (runs > 3) == (order == "dirichlet")


def test_cameras_take_turns_and_keep_their_own_order(data: LabelledData) -> None:
    sequential = list(Stream(scenario(), data=data))
    stream = Stream(scenario(arrangement="cameras"), data=data)
    batches = list(stream)
    names = [name for batch in batches for name in batch.streams or ()]
    assert names[:6] == ["clear", "noise", "fog"] * 2
    assert names[-60:] == ["noise"] * 60  # the others have run out
    assert [span.camera for span in stream.spans] == ["clear", "noise", "fog"]
    for domain in range(3):
        assert_same(sequential, batches, domain, domain)


def test_a_slow_transition_lets_the_last_domain_fade(data: LabelledData) -> None:
    domains = (Domain("clear", 400), Domain("fog", 400, "fog", 3))
    stream = Stream(scenario(domains=domains, transition_frames=200), data=data)
    shown = all_of(stream, "domains")
    assert len(shown) == 800
    assert (shown[:400] == 0).all() and (shown[600:] == 1).all()
    share = [(shown[start : start + 50] == 0).mean() for start in range(400, 600, 50)]
    np.testing.assert_allclose(share, [0.875, 0.625, 0.375, 0.125], atol=0.2)
    assert [span.frames for span in stream.spans] == np.bincount(shown).tolist()
    frames, _, ids = frames_of(list(stream), 0)
    np.testing.assert_array_equal(frames, data.x[ids])  # scored as clear because it is clear


def test_label_shift_makes_some_classes_rare_and_others_in_other_domains(
    data: LabelledData,
) -> None:
    domains = tuple(Domain(f"d{k}", 310) for k in range(4))
    batches = list(Stream(scenario(domains=domains, label_shift=16.0), data=data))
    counts = [np.bincount(frames_of(batches, k)[1], minlength=5) for k in range(4)]
    for count in counts:  # 16, 8, 4, 2, 1 parts of 310 frames
        assert sorted(count.tolist()) == [10, 20, 40, 80, 160]
    assert len({tuple(count) for count in counts}) > 1


def test_long_tailed_draws_do_not_repeat_before_they_must() -> None:
    labels = np.repeat(np.arange(4), 50)
    rng = np.random.default_rng(0)
    chosen = long_tailed(np.arange(200), labels, count=80, ratio=8.0, rng=rng)
    assert len(set(chosen.tolist())) == 80


def test_classes_can_be_grouped_where_each_has_few_images() -> None:
    labels = np.arange(200)
    rng = np.random.default_rng(0)
    order = class_correlated_order(labels, alpha=0.1, rng=rng, groups=10)
    assert sorted(order.tolist()) == list(range(200))
    assert run_lengths(labels[order] // 20).mean() > 5


# Splits ------------------------------------------------------------------------------------------


def test_a_split_streams_only_its_part(data: LabelledData, tmp_path: Any) -> None:
    split = Split.make(data, calibrate=0.1, tune=0.3, seed=0)
    split.save(tmp_path / "s.json")
    parts = {"calibrate": 20, "tune": 60, "test": 120}
    seen: list[int] = []
    for part, size in parts.items():
        whole = scenario(domains=(Domain("all", size),), split="s.json", part=part, base=tmp_path)
        stream = Stream(whole, data=data)
        ids = all_of(stream, "ids")
        assert len(set(ids.tolist())) == size
        assert np.bincount(data.y[ids]).tolist() == [size // 5] * 5
        seen += ids.tolist()
        calibration = np.concatenate(list(stream.calibration()))
        np.testing.assert_array_equal(calibration, data.x[split.calibrate])
    assert sorted(seen) == list(range(200))
    assert list(Stream(scenario(), data=data).calibration()) == []


def test_a_split_of_other_data_is_refused(data: LabelledData, tmp_path: Any) -> None:
    Split.make(data, calibrate=0.1, tune=0.3, seed=0).save(tmp_path / "s.json")
    whole = scenario(split="s.json", base=tmp_path)
    with pytest.raises(DataError, match="The split is for 200 samples, the data has 199"):
        Stream(whole, data=LabelledData(data.x[1:], data.y[1:]))
    with pytest.raises(DataError, match="made for other data: the labels differ"):
        Stream(whole, data=LabelledData(data.x, data.y[::-1].copy()))
    (tmp_path / "s.json").write_text("[1, 2")
    with pytest.raises(DataError, match=r"s\.json: not a split"):
        Stream(whole, data=data)
