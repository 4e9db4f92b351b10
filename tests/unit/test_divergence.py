"""The location-scale distance: its formula, its symmetries, and what it is near."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamadapt import Moments, StreamProcessor
from streamadapt.drift import Drift, location_scale_distance
from streamadapt.estimators import EMA
from streamadapt.testing import frames, tiny_model

EPS = 1e-5
Array = np.ndarray


def moments(mean: Array | float, var: Array | float) -> Moments:
    wide = [torch.as_tensor(np.atleast_1d(value), dtype=torch.float64) for value in (mean, var)]
    return Moments(torch.zeros_like(wide[0]), *wide)


def distance(a: Moments, b: Moments, eps: float = EPS) -> Array:
    per_channel = torch.full((a.mean.shape[-1],), eps, dtype=torch.float64)
    return location_scale_distance(a, b, per_channel).numpy()


def formula(a: tuple[Array, Array], b: tuple[Array, Array], eps: float = EPS) -> Array:
    (ma, va), (mb, vb) = a, b
    log_ratio = np.log((va + eps) / (vb + eps))
    return (ma - mb) ** 2 / np.sqrt((va + eps) * (vb + eps)) + log_ratio**2 / 2


def jeffreys(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
    """KL divergence of two normal distributions, both ways added up."""
    (ma, va), (mb, vb) = a, b
    squared = (ma - mb) ** 2
    return 0.5 * ((va + squared) / vb + (vb + squared) / va) - 1.0


def pairs(seed: int, channels: int = 50) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    rng = np.random.default_rng(seed)
    a, b = ((rng.normal(0, 5, channels), np.exp(rng.normal(0, 3, channels))) for _ in range(2))
    return a, b


@given(st.integers(0, 2**16), st.sampled_from([1e-5, 1e-3, 1.0]))
def test_it_is_its_formula_and_symmetric(seed: int, eps: float) -> None:
    a, b = pairs(seed)
    got = distance(moments(*a), moments(*b), eps)
    np.testing.assert_allclose(got, formula(a, b, eps), rtol=1e-12)
    np.testing.assert_allclose(got, distance(moments(*b), moments(*a), eps), rtol=1e-12)
    assert (got >= 0).all()


@given(st.integers(0, 2**16))
def test_it_is_zero_for_the_same_and_for_nothing_else(seed: int) -> None:
    a, _ = pairs(seed)
    assert (distance(moments(*a), moments(*a)) == 0).all()
    assert (distance(moments(*a), moments(a[0] + 1e-3, a[1])) > 0).all()
    assert (distance(moments(*a), moments(a[0], a[1] * 1.001)) > 0).all()


@given(st.integers(0, 2**16), st.floats(-100, 100), st.floats(0.1, 10.0))
def test_neither_unit_nor_origin_matters(seed: int, offset: float, factor: float) -> None:
    a, b = pairs(seed)
    moved = [moments(factor * mean + offset, factor**2 * var) for mean, var in (a, b)]
    np.testing.assert_allclose(
        distance(*moved, eps=factor**2 * EPS), distance(moments(*a), moments(*b)), rtol=1e-7
    )


@pytest.mark.parametrize("step", [0.03, 0.01])
def test_for_small_differences_it_is_jeffreys_divergence(step: float) -> None:
    rng = np.random.default_rng(4)
    mean, var = rng.normal(0, 5, 50), np.exp(rng.normal(0, 2, 50))
    near = (
        mean + step * rng.normal(size=50) * np.sqrt(var),
        var * np.exp(step * rng.normal(size=50)),
    )
    got = distance(moments(mean, var), moments(*near), eps=0.0)
    np.testing.assert_allclose(got, jeffreys((mean, var), near), rtol=0.02)


def test_a_variance_near_zero_does_not_blow_it_up() -> None:
    """A dead channel is far away, not infinitely far."""
    dead, alive = moments(0.0, 0.0), moments(0.0, 1.0)
    assert distance(dead, alive).item() == pytest.approx(np.log(1e-5 / (1 + 1e-5)) ** 2 / 2)
    assert jeffreys((np.zeros(1), np.full(1, 1e-5)), (np.zeros(1), np.ones(1))).item() > 1e4
    assert distance(dead, dead).item() == 0.0


def test_rows_are_compared_with_one_source() -> None:
    rows = moments(np.arange(6.0).reshape(3, 2), np.ones((3, 2)))
    got = distance(rows, moments(np.zeros(2), np.ones(2)), eps=0.0)
    np.testing.assert_allclose(got, [[0.0, 1.0], [4.0, 9.0], [16.0, 25.0]])


def test_a_processor_reports_it_layer_by_layer() -> None:
    """Averaged over the channels that are there, from the statistics that it shows."""
    model = tiny_model()
    source = {
        name: (layer.running_mean.double().numpy(), layer.running_var.double().numpy())
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.BatchNorm2d)
    }
    source = {name: (mean.copy(), var.copy()) for name, (mean, var) in source.items()}
    with StreamProcessor(model, estimator=EMA(0.5)) as processor:
        assert processor.drift().overall == 0.0
        for seed in range(3):
            processor(frames(4, seed=seed, gain=3.0, offset=2.0))
        drift, now = processor.drift(), processor.statistics()
    for name, own in source.items():
        wanted = formula((now[name].mean.numpy(), now[name].var.numpy()), own).mean()
        assert drift.layers[name] == pytest.approx(wanted, rel=1e-9)
    assert drift.overall == pytest.approx(np.mean(list(drift.layers.values())))
    assert drift.overall > 0.1


def test_a_drift_is_a_value_that_prints_in_one_line() -> None:
    drift = Drift("dock-1", {"bn1": 0.25, "bn2": 0.75}, 0.5)
    assert repr(drift) == "Drift(stream='dock-1', overall=0.5, layers=2)"
    with pytest.raises(FrozenInstanceError):
        drift.overall = 0.0  # type: ignore[misc]
