"""Frames to rows, against NumPy's moments of the raw values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamadapt.moments import Moments, location_scale_distance
from streamadapt.ops.reduce import FrameMoments, frame_distances, reduce_frames

POSITIONS = 6
Array = np.ndarray


class Case(NamedTuple):
    """Raw values `[frames, 3, positions]`; each frame's row or -1; each frame's weight."""

    x: Array
    owner: Array
    weight: Array

    def weights(self, rows: int) -> Tensor:
        table = np.zeros((rows, len(self.x)))
        for frame, row in enumerate(self.owner):
            if row >= 0:
                table[row, frame] = self.weight[frame]
        return torch.from_numpy(table)


@st.composite
def cases(draw: st.DrawFn, rows: int = 3) -> Case:
    frames = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    offset = draw(st.sampled_from([0.0, 10.0, 1000.0]))
    x = rng.normal(size=(frames, 3, POSITIONS)) * rng.uniform(0.1, 3.0, (frames, 3, 1)) + offset
    owner = np.array(draw(st.lists(st.integers(-1, rows - 1), min_size=frames, max_size=frames)))
    if draw(st.booleans()):
        return Case(x, owner, np.ones(frames))
    return Case(x, owner, rng.uniform(0.05, 2.0, frames))


def observe(x: Array, *, bad: Array | None = None) -> FrameMoments:
    """Per-frame moments; of the frames in `bad`, one channel is spoiled."""
    mean, var = x.mean(axis=2), x.var(axis=2)
    if bad is not None:
        mean[bad, 1], var[bad, 2] = np.nan, np.inf
    positions = torch.full((3,), float(POSITIONS), dtype=torch.float64)
    return FrameMoments(torch.from_numpy(mean), torch.from_numpy(var), positions, positions[:1])


def assert_pooled(case: Case, rows: int, *, bad: Array) -> None:
    reduced = reduce_frames(observe(case.x, bad=bad), case.weights(rows))
    assert reduced.finite.tolist() == (~bad).tolist()
    for row in range(rows):
        own = (case.owner == row) & ~bad
        total = case.weight[own].sum()
        np.testing.assert_allclose(reduced.frames[row].item(), total, rtol=1e-13)
        np.testing.assert_allclose(reduced.moments.count[row], total * POSITIONS, rtol=1e-13)
        got = reduced.moments.mean[row].numpy(), reduced.moments.var[row].numpy()
        if not own.any():
            assert np.isfinite(got).all() and (got[1] >= 0).all()
            continue
        values = case.x[own].transpose(1, 0, 2).reshape(3, -1)
        share = np.repeat(case.weight[own], POSITIONS) / (total * POSITIONS)
        mean = values @ share
        var = (values - mean[:, None]) ** 2 @ share
        scale = 1.0 + np.abs(values).max()
        np.testing.assert_allclose(got[0], mean, rtol=1e-12, atol=1e-14 * scale)
        np.testing.assert_allclose(got[1], var, rtol=1e-12, atol=1e-15 * scale**2)


@given(cases())
def test_a_row_has_the_pooled_moments_of_its_frames(case: Case) -> None:
    assert_pooled(case, 3, bad=np.zeros(len(case.x), dtype=bool))


@given(cases(), st.integers(0, 255))
def test_a_frame_that_is_not_finite_has_weight_zero(case: Case, mask: int) -> None:
    assert_pooled(case, 3, bad=np.array([bool(mask >> i & 1) for i in range(len(case.x))]))


@given(cases(rows=1))
def test_one_row(case: Case) -> None:
    assert_pooled(case, 1, bad=np.zeros(len(case.x), dtype=bool))


@given(cases())
def test_a_rows_frames_touch_no_other_row(case: Case) -> None:
    before = reduce_frames(observe(case.x), case.weights(3))
    other = case.x.copy()
    other[case.owner == 1] *= -7.0
    after = reduce_frames(observe(other), case.weights(3))
    for row in (0, 2):
        assert torch.equal(before.moments.mean[row], after.moments.mean[row])
        assert torch.equal(before.moments.var[row], after.moments.var[row])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["mean", "var"])
def test_a_lone_frame_that_is_not_finite_counts_for_nothing(field: str, bad: float) -> None:
    observed = observe(np.ones((1, 3, POSITIONS)))
    getattr(observed, field)[0, 2] = bad
    reduced = reduce_frames(observed, torch.ones(1, 1, dtype=torch.float64))
    assert reduced.finite.tolist() == [False]
    assert reduced.frames.item() == 0.0
    assert reduced.moments.count.eq(0).all()


def test_infinities_of_both_signs_do_not_cancel() -> None:
    observed = observe(np.ones((2, 3, POSITIONS)))
    observed.mean[0, 0], observed.mean[0, 1] = float("inf"), float("-inf")
    assert reduce_frames(observed, torch.ones(1, 2).double()).finite.tolist() == [False, True]


def test_the_largest_numbers_that_fp32_holds_are_finite() -> None:
    """Means up to 3e38 and variances up to their square are ordinary values."""
    observed = observe(np.ones((2, 3, POSITIONS)))
    observed.mean[:], observed.var[:] = 3e38, 1e76
    reduced = reduce_frames(observed, torch.ones(1, 2).double())
    assert reduced.finite.all()
    assert torch.isfinite(reduced.moments.mean).all() and torch.isfinite(reduced.moments.var).all()


def test_a_layer_that_did_not_run_has_count_zero() -> None:
    observed = observe(np.ones((2, 3, POSITIONS)))
    positions = torch.tensor([6.0, 0.0, 6.0], dtype=torch.float64)
    partly = FrameMoments(observed.mean, observed.var, positions, positions)
    reduced = reduce_frames(partly, torch.ones(1, 2).double())
    assert reduced.moments.count.tolist() == [[12.0, 0.0, 12.0]]
    assert reduced.frames.item() == 2.0


def test_what_was_observed_is_left_alone() -> None:
    observed = observe(np.random.default_rng(0).normal(size=(4, 3, POSITIONS)), bad=None)
    observed.mean[2, 1] = float("nan")
    weights = torch.tensor([[1.0, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
    before = [t.clone() for t in (observed.mean, observed.var, observed.positions, weights)]
    reduce_frames(observed, weights)
    for tensor, kept in zip(
        (observed.mean, observed.var, observed.positions, weights), before, strict=True
    ):
        assert torch.equal(tensor.nan_to_num(9.0), kept.nan_to_num(9.0))


def distances(observed: FrameMoments, weights: Tensor, held: Moments) -> Tensor:
    eps = torch.full_like(held.mean[0], 1e-5)
    return frame_distances(
        observed, weights, held, eps=eps, mean_over_model=lambda x: x.mean(dim=-1, keepdim=True)
    )


@given(cases(), st.sampled_from([1e-9, 1.0, 1e9]))
def test_a_frame_is_as_far_from_its_row_as_the_distance_says(case: Case, scale: float) -> None:
    rng = np.random.default_rng(1)
    mean = case.x.mean() + rng.normal(size=(3, 3))
    held = Moments(*(torch.from_numpy(one) for one in (mean * 0, mean, np.exp(mean * 0 + 0.5))))
    held = Moments(held.count, held.mean.float().double() * scale, held.var * scale**2)
    seen = observe(case.x.astype(np.float32) * scale)
    found = distances(seen, case.weights(3), held)
    eps = torch.tensor(1e-5, dtype=torch.float64)
    for frame, row in enumerate(case.owner):
        if row >= 0:
            one = Moments(seen.positions, seen.mean[frame].float().double(), seen.var[frame])
            other = Moments(held.count[row], held.mean[row], held.var[row])
            wanted = location_scale_distance(one, other, eps).clamp(max=100.0).mean()
            # Means 1000 deviations from zero keep four digits of their difference in fp32.
            torch.testing.assert_close(found[frame], wanted, rtol=1e-2, atol=1e-4)


def test_what_leaves_the_range_of_fp32_is_far_and_what_is_not_finite_has_no_distance() -> None:
    observed = observe(np.random.default_rng(0).normal(size=(5, 3, POSITIONS)))
    observed.mean[1], observed.var[2] = 3e38, 1e70
    observed.mean[3, 0], observed.var[4, 0] = float("inf"), float("nan")
    zeros = torch.zeros(1, 3, dtype=torch.float64)
    for var in (1.0, 0.0, 1e37):
        found = distances(
            observed, torch.ones(1, 5).double(), Moments(zeros, zeros, torch.full_like(zeros, var))
        )
        assert torch.isfinite(found[:3]).all()
        assert found[3:].isnan().all()
        if var == 1.0:
            assert found[0] < 5.0 and (found[1:3] == 100.0).all()
