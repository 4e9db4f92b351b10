"""The parts of the paper's hypothesis: each measures what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from benchmarks.paper import divergence, gap, probes, swaps
from benchmarks.paper.worlds import norm_layers, worlds


def test_a_probe_finds_what_is_linear_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    x, x_new = rng.normal(size=(2, 2000, 3))
    linear = probes.ridge_probe(x, (x[:, 1] > 0).astype(int), x_new, classes=2)
    chance = probes.ridge_probe(x, rng.integers(2, size=2000), x_new, classes=2)
    assert np.mean(linear == (x_new[:, 1] > 0)) > 0.97
    assert abs(np.mean(chance == rng.integers(2, size=2000)) - 0.5) < 0.05


def test_statistics_of_mini_batches_are_those_of_their_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2)).eval()
    images = torch.randn(40, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    labels = np.arange(40) % 2
    found = probes.observe(model, ["0"], images, labels)
    first = images[:16].double().transpose(0, 1).reshape(2, -1).numpy()
    assert found.statistics["0"].shape == (2, 4)  # the last eight images are no whole batch
    np.testing.assert_allclose(found.statistics["0"][0, :2], first.mean(axis=1))
    np.testing.assert_allclose(found.statistics["0"][0, 2:], np.log(first.var(axis=1)))
    assert found.classes.tolist() == [0, 1]
    evens = images[::2][:16].double().transpose(0, 1).reshape(2, -1).numpy()
    np.testing.assert_allclose(found.of_classes["0"][0, :2], evens.mean(axis=1))


def test_divergence_is_that_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    one, other = ((rng.normal(size=5), rng.uniform(0.1, 2, size=5)) for _ in range(2))
    eps = 1e-3
    p, q = (
        Normal(torch.from_numpy(mean), torch.from_numpy(np.sqrt(var + eps)))
        for mean, var in (one, other)
    )
    expected = (kl_divergence(p, q) + kl_divergence(q, p)).mean()
    found = divergence.symmetric_divergence(one, other, eps=eps)
    assert found == pytest.approx(float(expected))


def test_input_statistics_are_those_of_all_images_together() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    images = torch.randn(10, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    mean, var = divergence.input_statistics(model, images.split(3))["1"]
    with torch.inference_mode():
        inputs = model[0](images).double().transpose(0, 1).reshape(4, -1).numpy()
    np.testing.assert_allclose(mean, inputs.mean(axis=1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(var, inputs.var(axis=1), rtol=1e-5, atol=1e-7)


def test_a_mean_of_equal_values_is_certain() -> None:
    found = divergence.mean_interval([2.0, 2.0, 2.0])
    assert (found.low, found.estimate, found.high) == (2.0, 2.0, 2.0)


def _twins() -> tuple[nn.Module, nn.Module]:
    def network(value: float) -> nn.Module:
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        for tensor in model.state_dict().values():
            tensor.fill_(int(value) if tensor.dtype == torch.int64 else value)
        return model.eval()

    return network(1.0), network(2.0)


def test_a_mixture_takes_the_parts_it_is_told() -> None:
    one, other = _twins()
    belongs = {
        "0.weight": "weights",
        "0.bias": "weights",
        "1.weight": "affine",
        "1.bias": "affine",
        "1.running_mean": "statistics",
        "1.running_var": "statistics",
    }
    for taken in ([], ["affine"], ["statistics", "weights"], list(swaps.PARTS)):
        state = swaps.mixed(one, other, from_other=taken).state_dict()
        for name, part in belongs.items():
            assert (state[name] == (2.0 if part in taken else 1.0)).all()


def test_a_fine_tune_moves_only_what_it_may() -> None:
    world = worlds(quick=True)["digits"]
    source = world.model()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    images, labels = world.images("fog", "tune"), world.labels("tune")
    only = ["linear.weight"]
    tuned = swaps.labelled_fine_tune(
        source, images, labels, only=only, fixed_statistics=True, steps=2
    )
    moved = [name for name, value in tuned.state_dict().items() if not value.equal(before[name])]
    assert moved == only
    assert all(value.equal(before[name]) for name, value in source.state_dict().items())
    assert not any(module.training for module in tuned.modules())


def test_depths_hold_every_parameter_but_the_head_once() -> None:
    model = worlds(quick=True)["digits"].model()
    groups = gap.parameters_by_depth(model)
    flat = [name for group in groups for name in group]
    every = [name for name, _ in model.named_parameters()]
    assert sorted(flat) == sorted(name for name in every if not name.startswith("linear"))
    assert len(flat) == len(set(flat))
    first = norm_layers(model)[0].rpartition(".")[0]
    assert groups[0][0].startswith(first)
