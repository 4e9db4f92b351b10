"""CORAL in float64 NumPy, as the paper's formula has it."""

from __future__ import annotations

import numpy as np


def power(matrix, exponent):
    """A power of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


def map_of(target, source, ridge):
    """`(C_t + ridge I)^(-1/2) (C_s + ridge I)^(1/2)`."""
    eye = np.eye(len(source))
    return power(target + ridge * eye, -0.5) @ power(source + ridge * eye, 0.5)


def aligned(features, source, target, *, ridge, align_mean=True):
    """Features with the source's moments; `source` and `target` are pairs of mean, covariance."""
    moved = (features - target[0]) @ map_of(target[1], source[1], ridge)
    return moved + (source[0] if align_mean else target[0])


def moments(features):
    """Mean and population covariance."""
    return features.mean(axis=0), np.cov(features.T, bias=True)


def blend(old, batch, weight):
    """Mean and covariance of a mixture: `batch` with probability `weight`."""
    d = batch[0] - old[0]
    covariance = (1 - weight) * old[1] + weight * batch[1]
    return old[0] + weight * d, covariance + weight * (1 - weight) * np.outer(d, d)
