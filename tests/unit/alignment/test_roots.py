"""Roots of covariance matrices against float64 eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamadapt.alignment.roots import inverse_root, matrix_power, newton_schulz, steps_for
from tests.unit.alignment import numpy_coral


def covariance(size, condition, seed=0):
    """Eigenvalues spread evenly on a logarithmic scale, in random directions."""
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (vectors * np.geomspace(condition, 1.0, size)) @ vectors.T


@pytest.mark.parametrize("size", [1, 2, 7, 64, 130])
@pytest.mark.parametrize("ridge", [1.0, 1e-3, 30.0])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e6])
def test_the_iteration_is_the_inverse_root(size, ridge, condition):
    matrix = covariance(size, condition)
    wanted = numpy_coral.power(matrix + ridge * np.eye(size), -0.5)
    found = newton_schulz(torch.from_numpy(matrix), ridge=ridge, steps=steps_for(1e10))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-8 * np.abs(wanted).max())


def test_as_many_steps_as_it_says_are_enough():
    for condition in (1.5, 10.0, 1e3, 1e6):
        matrix = torch.from_numpy(covariance(20, condition) - 0.5 * np.eye(20))
        root = newton_schulz(matrix, ridge=0.5, steps=steps_for(100 * condition))
        whole = matrix + 0.5 * torch.eye(20)
        torch.testing.assert_close(root @ whole @ root, torch.eye(20).double(), rtol=0, atol=1e-7)


def test_too_few_steps_are_noticed():
    matrix = torch.from_numpy(covariance(20, 1e6))
    assert torch.isnan(newton_schulz(matrix, ridge=1e-6, steps=4)).all()
    assert torch.isnan(newton_schulz(matrix * torch.nan, ridge=1.0, steps=12)).all()


def test_a_covariance_without_full_rank_has_a_root():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 30)))
    matrix = x.T @ x / 5
    wanted = numpy_coral.power(matrix.numpy() + 0.1 * np.eye(30), -0.5)
    for found in (
        inverse_root(matrix, ridge=0.1, steps=15),
        newton_schulz(matrix, ridge=0.1, steps=15),
        matrix_power(matrix, -0.5, ridge=0.1),
    ):
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-9)
