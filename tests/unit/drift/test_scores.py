"""Scores of layers and depths, against float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamadapt import Moments
from streamadapt.drift.scores import DEPTHS, by_depth, observed_distances, thirds
from streamadapt.layout import BankLayout

Array = np.ndarray
WIDTHS = (5, 40, 3, 64)
EPS = (1e-5, 1e-3, 1e-5, 0.1)


def layout_of(eps: tuple[float, ...] = EPS) -> BankLayout:
    return BankLayout([(f"bn{k}", *both) for k, both in enumerate(zip(WIDTHS, eps, strict=True))])


def moments(layout: BankLayout, rows: int, seed: int) -> tuple[Array, Array]:
    """Means and variances of real channels; what lies in the padding is out of all proportion."""
    rng = np.random.default_rng(seed)
    mean = np.full((rows, layout.padded_channels), 1e9)
    var = np.full((rows, layout.padded_channels), 1e-9)
    for layer in layout.layers:
        mean[:, layer.span] = rng.normal(size=(rows, layer.channels))
        var[:, layer.span] = rng.lognormal(size=(rows, layer.channels))
    return mean, var


def packed(mean: Array, var: Array) -> Moments:
    return Moments(torch.ones(()), torch.from_numpy(mean), torch.from_numpy(var))


def distances(
    observed: tuple[Array, Array],
    source: tuple[Array, Array],
    layout: BankLayout,
    *,
    frames: list[float] | None = None,
    positions: list[float] | None = None,
) -> Tensor:
    rows = len(observed[0])
    return observed_distances(
        packed(*observed),
        packed(*source),
        torch.tensor(frames or [1.0] * rows, dtype=torch.float64)[:, None],
        torch.tensor(positions or [9.0] * len(WIDTHS), dtype=torch.float64),
        layout,
    )


def wanted(observed: tuple[Array, Array], source: tuple[Array, Array], layout: BankLayout) -> Array:
    """Mean over the layer of `min(100, d^2 / sqrt(v v') + ln(v / v')^2 / 2)`."""
    out = []
    for layer in layout.layers:
        (m, v), (n, w) = (
            (mean[:, layer.span], var[:, layer.span] + layer.eps)
            for mean, var in (observed, source)
        )
        apart = (m - n) ** 2 / np.sqrt(v * w) + np.log(v / w) ** 2 / 2.0
        out.append(np.minimum(apart, 100.0).mean(axis=1))
    return np.stack(out, axis=1)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_layer_is_as_far_as_its_channels_are_on_average(rows: int) -> None:
    layout = layout_of()
    observed, source = moments(layout, rows, 0), moments(layout, 1, 1)
    found = distances(observed, source, layout)
    assert found.shape == (rows, 4) and found.dtype == torch.float64
    np.testing.assert_allclose(found, wanted(observed, source, layout), rtol=1e-12)
    flat = (source[0][0], source[1][0])
    assert torch.equal(distances(observed, flat, layout), found)


@settings(max_examples=40)
@given(st.integers(0, 99), st.floats(-1e3, 1e3))
def test_what_is_like_the_source_is_at_distance_zero_and_distance_is_symmetric(
    seed: int, offset: float
) -> None:
    layout = layout_of()
    one, other = moments(layout, 1, seed), moments(layout, 1, seed + 1)
    moved = (one[0] + offset, one[1])
    assert (distances(moved, moved, layout) == 0.0).all()
    there, back = distances(moved, other, layout), distances(other, moved, layout)
    assert torch.allclose(there, back, rtol=1e-12)
    assert (there >= 0.0).all() and (there <= 100.0).all()


@settings(max_examples=40)
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_units_of_a_channel_do_not_matter(scale: float, offset: float) -> None:
    layout = layout_of((0.0, 0.0, 0.0, 0.0))
    one, other = moments(layout, 2, 3), moments(layout, 1, 4)
    scaled = [(scale * mean + offset, scale**2 * var) for mean, var in (one, other)]
    assert torch.allclose(distances(*scaled, layout), distances(one, other, layout), rtol=1e-6)


def test_one_channel_out_of_all_proportion_counts_a_hundred_at_most() -> None:
    layout = layout_of()
    source = moments(layout, 1, 1)
    for far in (1e12, math.inf, -math.inf):
        observed = source[0].copy(), source[1].copy()
        observed[0][0, layout.layers[1].start] = far
        found = distances(observed, source, layout)[0].tolist()
        assert found == pytest.approx([0.0, 100.0 / 40, 0.0, 0.0])


def test_channels_that_never_change_are_no_distance_apart() -> None:
    layout = layout_of((0.0, 0.0, 0.0, 0.0))
    shape = (1, layout.padded_channels)
    constant = (np.full(shape, 2.0), np.zeros(shape))
    assert distances(constant, constant, layout).tolist() == [[0.0] * 4]
    moved = (constant[0] + 1.0, constant[1])
    assert distances(moved, constant, layout)[0].tolist() == pytest.approx([100.0] * 4)


def test_where_nothing_was_seen_there_is_no_distance_and_other_rows_have_theirs() -> None:
    layout = layout_of()
    observed, source = moments(layout, 3, 5), moments(layout, 1, 6)
    everything = distances(observed, source, layout)
    for mean_or_var in observed:
        mean_or_var[1] = math.nan  # what a row without frames holds is of no account
    found = distances(
        observed, source, layout, frames=[2.0, 0.0, 0.5], positions=[4.0, 0.0, 1.0, 9.0]
    )
    assert found[1].isnan().all()
    assert found[:, 1].isnan().all()
    for row in (0, 2):
        assert torch.equal(found[row, [0, 2, 3]], everything[row, [0, 2, 3]])


# Depths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4, 5, 20, 53, 100])
def test_thirds_share_all_layers_out_from_early_to_late(layers: int) -> None:
    spans = thirds(layers)
    assert list(spans) == list(DEPTHS[: min(layers, 3)])
    assert [k for span in spans.values() for k in range(layers)[span]] == list(range(layers))
    sizes = [span.stop - span.start for span in spans.values()]
    assert all(size > 0 for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


@settings(max_examples=50)
@given(st.lists(st.floats(0.0, 100.0) | st.just(math.nan), max_size=40))
def test_scores_are_means_over_what_ran_in_each_third_and_in_the_model(layers: list[float]) -> None:
    found = by_depth(layers)
    third = [math.ceil(len(layers) * part / 3) for part in range(4)]
    parts = {name: layers[third[k] : third[k + 1]] for k, name in enumerate(DEPTHS)}
    for name, part in {**parts, "model": layers}.items():
        ran = [value for value in part if not math.isnan(value)]
        assert (name in found) == bool(ran)
        if ran:
            assert found[name] == pytest.approx(math.fsum(ran) / len(ran))
    assert found == by_depth(np.array(layers))
    assert set(found) <= {*DEPTHS, "model"}
