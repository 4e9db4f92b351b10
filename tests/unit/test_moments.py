"""Moments against float64 NumPy: merging, blending, shifted sums."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamadapt import Moments

Array = np.ndarray


def samples(smallest: int = 1) -> st.SearchStrategy[Array]:
    """`[n, 2]`, with repeated values, offsets and zeros among them."""
    values = st.floats(-1e3, 1e3, allow_subnormal=False)
    return st.integers(smallest, 12).flatmap(lambda n: arrays(np.float64, (n, 2), elements=values))


def of(x: Array) -> Moments:
    return Moments.of(torch.from_numpy(x))


def assert_moments(got: Moments, count: float, mean: Array, var: Array, scale: float) -> None:
    """Equal to within rounding of numbers as large as `scale`."""
    np.testing.assert_allclose(got.count, np.full_like(mean, count), rtol=1e-13)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-12, atol=1e-13 * scale)
    np.testing.assert_allclose(got.var, var, rtol=1e-12, atol=1e-13 * scale**2)


def assert_population(got: Moments, x: Array) -> None:
    assert_moments(got, len(x), x.mean(axis=0), x.var(axis=0), 1.0 + np.abs(x).max())


@given(samples())
def test_of_is_the_population(x: Array) -> None:
    assert_population(of(x), x)
    assert of(x).mean.dtype == torch.float64
    assert_population(Moments.of(torch.from_numpy(x).float()), x.astype(np.float32).astype(float))


@given(samples(), samples())
def test_a_merge_has_the_moments_of_both_samples_together(a: Array, b: Array) -> None:
    assert_population(of(a).merge(of(b)), np.concatenate([a, b]))


@given(samples(), samples(), samples())
def test_merging_is_commutative_and_associative(a: Array, b: Array, c: Array) -> None:
    everything = np.concatenate([a, b, c])
    for merged in (
        of(a).merge(of(b)).merge(of(c)),
        of(a).merge(of(b).merge(of(c))),
        of(c).merge(of(b).merge(of(a))),
    ):
        assert_population(merged, everything)


@given(samples(smallest=2), st.data())
def test_it_does_not_matter_how_a_sample_is_cut(x: Array, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(1, len(x) - 1), unique=True))
    first, *rest = np.split(x, sorted(cuts))
    merged = of(first)
    for part in rest:
        merged = merged.merge(of(part))
    assert_population(merged, x)


def test_the_printed_equation_two_is_not_what_a_merge_computes() -> None:
    """`mu += d k / n` with `n` the count before the batch: twice too far for two equal halves."""
    a, b = of(np.zeros((4, 1))), of(np.ones((4, 1)))
    assert a.merge(b).mean.item() == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merging_with_nothing_changes_nothing(dtype: torch.dtype) -> None:
    some = Moments(*(torch.tensor([value], dtype=dtype) for value in (4.0, -3.0, 2.5)))
    none = Moments(*(torch.tensor([value], dtype=dtype) for value in (0.0, 7.0, 9.0)))
    for merged in (some.merge(none), none.merge(some)):
        torch.testing.assert_close(merged.count, some.count, rtol=0, atol=0)
        torch.testing.assert_close(merged.mean, some.mean)
        torch.testing.assert_close(merged.var, some.var)
    both = none.merge(none)
    assert both.count.item() == 0.0
    assert torch.isfinite(both.mean).all() and torch.isfinite(both.var).all()


@given(samples(), samples(), st.floats(0.0, 1.0))
def test_a_blend_is_a_mixture(a: Array, b: Array, weight: float) -> None:
    values = np.concatenate([a, b])
    share = np.concatenate(
        [np.full(len(a), (1 - weight) / len(a)), np.full(len(b), weight / len(b))]
    )
    mean = share @ values
    var = share @ (values - mean) ** 2
    scale = 1.0 + np.abs(values).max()
    assert_moments(of(a).blend(of(b), weight), len(a) + len(b), mean, var, scale)


def test_a_blend_takes_a_weight_for_each_row() -> None:
    old = Moments(torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, 2))
    new = Moments(torch.ones(3, 2), torch.full((3, 2), 4.0), torch.full((3, 2), 3.0))
    mixed = old.blend(new, torch.tensor([[0.0], [0.5], [1.0]]))
    assert mixed.mean.tolist() == [[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]]
    assert mixed.var.tolist() == [[1.0, 1.0], [6.0, 6.0], [3.0, 3.0]]  # 2 within, 4 between


@pytest.mark.parametrize("ratio", [0.0, 1.0, 30.0, 1000.0])
def test_shifted_sums_survive_a_mean_far_from_zero(ratio: float) -> None:
    """fp32 sums around a value of the sample, at |mean| up to 1000 sigma."""
    x = (np.random.default_rng(3).normal(ratio, 1.0, (4096, 8))).astype(np.float32)
    shift = x[0]
    rest = x - shift
    got = Moments.from_shifted_sums(
        torch.tensor(4096.0),
        torch.from_numpy(shift),
        torch.from_numpy(rest.sum(axis=0)),
        torch.from_numpy((rest**2).sum(axis=0)),
    )
    mean, var = x.astype(float).mean(axis=0), x.astype(float).var(axis=0)
    assert got.mean.dtype == torch.float32
    assert np.all(np.abs(got.mean.numpy() - mean) <= 1e-5 + np.spacing(np.float32(ratio)))
    np.testing.assert_allclose(got.var, var, rtol=5e-5)


@given(samples(), st.floats(-1e3, 1e3))
def test_shifted_sums_are_the_population(x: Array, shift: float) -> None:
    rest = x - shift
    sums = [torch.from_numpy(rest.sum(axis=0)), torch.from_numpy((rest**2).sum(axis=0))]
    got = Moments.from_shifted_sums(
        torch.full((2,), float(len(x)), dtype=torch.float64),
        torch.full((2,), shift, dtype=torch.float64),
        *sums,
    )
    scale = 1.0 + np.abs(x).max() + abs(shift)
    assert_moments(got, len(x), x.mean(axis=0), x.var(axis=0), 30 * scale)
    assert (got.var >= 0).all()


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.5])
def test_shifted_sums_may_be_weighted(weight: float) -> None:
    """A count below one is no count of zero."""
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]], dtype=torch.float64)
    rest = weight / 2 * (x - 2.5), weight / 2 * (x - 2.5).square()
    got = Moments.from_shifted_sums(
        torch.tensor(weight, dtype=torch.float64),
        torch.full((2,), 2.5, dtype=torch.float64),
        *(part.sum(dim=0) for part in rest),
    )
    torch.testing.assert_close(got.mean, x.mean(dim=0))
    torch.testing.assert_close(got.var, x.var(dim=0, correction=0))


def test_shifted_sums_of_nothing_are_the_shift() -> None:
    nothing = torch.zeros(2)
    got = Moments.from_shifted_sums(nothing, torch.tensor([4.0, -1.0]), nothing, nothing)
    assert got.mean.tolist() == [4.0, -1.0]
    assert got.var.tolist() == [0.0, 0.0]


@given(samples(smallest=2))
def test_bessels_correction(x: Array) -> None:
    scale = 1.0 + np.abs(x).max()
    np.testing.assert_allclose(
        of(x).unbiased_var, x.var(axis=0, ddof=1), rtol=1e-12, atol=1e-13 * scale**2
    )
    np.testing.assert_allclose(of(x).std ** 2, x.var(axis=0), rtol=1e-12, atol=1e-13 * scale**2)


@pytest.mark.parametrize("count", [0.0, 0.5, 1.0])
def test_one_value_has_no_bessels_correction(count: float) -> None:
    single = Moments(torch.tensor([count]), torch.tensor([3.0]), torch.tensor([2.0]))
    assert single.unbiased_var.item() == 2.0


def test_operations_leave_their_operands_alone() -> None:
    a = Moments(*(torch.full((2,), value, dtype=torch.float64) for value in (3.0, 1.0, 2.0)))
    b = Moments(*(torch.full((2,), value, dtype=torch.float64) for value in (5.0, -1.0, 4.0)))
    a.merge(b), a.blend(b, 0.3), a.unbiased_var, a.std
    for moments, values in ((a, (3.0, 1.0, 2.0)), (b, (5.0, -1.0, 4.0))):
        for tensor, value in zip((moments.count, moments.mean, moments.var), values, strict=True):
            assert tensor.tolist() == [value, value]
    with pytest.raises(FrozenInstanceError):
        a.mean = b.mean  # type: ignore[misc]


def test_the_repr_shows_shapes_and_no_data() -> None:
    moments = Moments(*(torch.zeros(2, 5, dtype=torch.float64) for _ in range(3)))
    assert repr(moments) == "Moments(channels=(2, 5), dtype=torch.float64, device=cpu)"
