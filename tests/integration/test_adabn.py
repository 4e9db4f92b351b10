"""Offline AdaBN against float64 references that share no code with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import streamadapt as sa
from tests.models import Residual, frames, population, randomise, residual, same, state_of


def target(sizes=(5, 3, 8), seed=0):
    x = frames(sum(sizes), seed=seed, shift=1.5, scale=2.0)
    return list(x.split(list(sizes)))


def normalise(x, mean, var, bn):
    shape = (1, -1, 1, 1)
    mean, var = torch.as_tensor(mean).view(shape), torch.as_tensor(var).view(shape)
    w, b = bn.weight.detach().double().view(shape), bn.bias.detach().double().view(shape)
    return (x - mean) / (var + bn.eps).sqrt() * w + b


def convolve(conv, x):
    return F.conv2d(x, conv.weight.detach().double(), padding=conv.padding)


def sequential_reference(model, x):
    """The residual network by hand: each layer's population statistics, shallow to deep."""
    x = x.double()
    found = {}
    a = convolve(model.conv1, x)
    found["bn1"] = population([a])
    a = torch.relu(normalise(a, *found["bn1"], model.bn1))
    b, c = convolve(model.conv2, a), convolve(model.conv3, a)
    found["bn2"], found["bn3"] = population([b]), population([c])
    return found


@pytest.mark.parametrize("sizes", [(16,), (5, 3, 8), (1,) * 16])
def test_layerwise_equals_the_sequential_reference_however_the_set_is_cut(sizes):
    model = residual()
    source = state_of(model)
    adapted = sa.adabn(model, target(sizes), method="layerwise")
    for name, (mean, var) in sequential_reference(model, torch.cat(target())).items():
        layer = adapted.get_submodule(name)
        np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-4, atol=1e-6)
    assert same(state_of(model), source) and type(adapted) is Residual
    assert "forward" not in adapted.bn1.__dict__


def test_one_pass_is_equation_two_with_the_right_denominator():
    model, batches = residual(), target()
    running = {name: (0, 0.0, 0.0) for name in ("bn1", "bn2", "bn3")}
    for x in batches:
        seen = sequential_reference(model, x)  # normalised by this batch alone
        positions = x.shape[0] * 64
        for name, (mean, var) in seen.items():
            n, mu, v = running[name]
            d = mean - mu
            total = n + positions
            new_mu = mu + d * positions / total
            new_v = (n * v + positions * var) / total + d**2 * n * positions / total**2
            running[name] = (total, new_mu, new_v)
    adapted = sa.adabn(model, batches)
    for name, (_, mean, var) in running.items():
        layer = adapted.get_submodule(name)
        np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-3, atol=1e-6)


def test_a_layer_called_at_two_depths_refuses_layerwise():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(torch.relu(self.bn(x)))

    model = randomise(Shared())
    with pytest.raises(sa.errors.UnsupportedModelError, match="'bn' is called at two depths"):
        sa.adabn(model, target(), method="layerwise")
    assert isinstance(sa.adabn(model, target()), Shared)


def test_layers_can_be_chosen_and_labels_are_ignored():
    model = residual()
    pairs = [(x, torch.zeros(len(x))) for x in target()]
    adapted = sa.adabn(model, pairs, layers=["bn1"], method="layerwise")
    assert not torch.equal(adapted.bn1.running_mean, model.bn1.running_mean)
    assert torch.equal(adapted.bn2.running_mean, model.bn2.running_mean)


@pytest.mark.parametrize("method", ["one_pass", "layerwise"])
def test_bad_sets(method):
    model = residual()
    with pytest.raises(sa.errors.DataError, match="no frames"):
        sa.adabn(model, [], method=method)
    with pytest.raises(sa.errors.DataError, match="no frames"):
        sa.adabn(model, [frames(0)], method=method)
    with pytest.raises(sa.errors.DataError, match="must yield tensors"):
        sa.adabn(model, ["x"], method=method)
    poisoned = frames(3)
    poisoned[1] = torch.nan
    with pytest.raises(sa.errors.DataError, match="not finite"):
        sa.adabn(model, [poisoned], method=method)


def test_wrong_use():
    with pytest.raises(sa.errors.ConfigurationError, match="once a layer"):
        sa.adabn(residual(), iter(target()), method="layerwise")
    with pytest.raises(sa.errors.ConfigurationError, match="`method` must be"):
        sa.adabn(residual(), target(), method="other")
    with pytest.raises(sa.errors.ModelStateError, match="training mode"):
        sa.adabn(residual().train(), target())
    with pytest.raises(sa.errors.UnsupportedModelError, match="no normalisation layer at all"):
        sa.adabn(nn.Linear(3, 3), target())
