"""Square roots of covariance matrices: by eigenvalues, and without waiting for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CLOSE = 1e-4  # distance from the identity at which one more cubic step leaves 4e-9
_DIVERGED = 1e-2


def matrix_power(matrix: Tensor, power: float, *, ridge: float = 0.0) -> Tensor:
    """`(matrix + ridge I)^power` of a symmetric positive semi-definite matrix, by eigenvalues.

    Args:
        matrix: `[D, D]` float64. Eigenvalues below zero, which are rounding, count as zero.
        power: any; a negative one needs a ridge, or a matrix of full rank.
        ridge: added to every eigenvalue.
    """
    values, vectors = torch.linalg.eigh(matrix)
    power_of: Tensor = (vectors * (values.clamp(min=0.0) + ridge).pow(power)) @ vectors.T
    return power_of


def inverse_root(matrix: Tensor, *, ridge: float, steps: int) -> Tensor:
    """`(matrix + ridge I)^(-1/2)`, on CUDA without a host synchronisation.

    On the CPU by eigenvalues: four to six times as fast as the iteration there (512 features, one
    thread: 40 ms against 170 ms). `torch.linalg.eigh` on CUDA makes the host wait for its verdict.

    Args:
        matrix: `[D, D]` float64, symmetric positive semi-definite, finite.
        ridge: above zero.
        steps: of the iteration; see `steps_for`.

    Returns:
        `[D, D]` float64; NaN where the iteration has not converged.
    """
    if matrix.device.type == "cpu":
        return matrix_power(matrix, -0.5, ridge=ridge)
    return newton_schulz(matrix, ridge=ridge, steps=steps)


def newton_schulz(matrix: Tensor, *, ridge: float, steps: int) -> Tensor:
    """`(matrix + ridge I)^(-1/2)` by the coupled Newton-Schulz iteration: matrix products alone.

    With `M` scaled to a spectrum in `[l^2, 1]`, `Y = M`, `Z = I`::

        T = mu (3 I - mu^2 Z Y) / 2      mu^2 = 3 / (1 + l + l^2)
        Y <- Y T    Z <- T Z    l <- mu l (3 - mu^2 l^2) / 2

    `Z` goes to the inverse root. The scaling `mu` maps both ends of the spectrum onto the new lower
    bound `l`, which then grows by up to 2.6 a step where the unscaled iteration grows it by 1.5.
    The ridge bounds the spectrum from below, the Frobenius norm from above; both stay on the
    device. In float64, because fp32 products may be TF32 or bfloat16 at the user's wish.

    Args:
        matrix: `[D, D]` float64, symmetric positive semi-definite.
        ridge: above zero.
        steps: how many; see `steps_for`.

    Returns:
        `[D, D]` float64, all NaN where it has not converged.

    Reference:
        Higham, "Functions of Matrices", 2008, chapter 6; Chen and Chow, "A stable scaling of
        Newton-Schulz for improving the sign function computation of a Hermitian matrix", 2014.
    """
    size = torch.linalg.matrix_norm(matrix) + ridge
    y = matrix / size
    y.diagonal().add_(ridge / size)
    lowest = (ridge / size).sqrt()
    z = identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    distance = torch.zeros_like(size)
    for step in range(steps):
        mu = (3.0 / (1.0 + lowest + lowest.square())).sqrt()
        product = z @ y if step else y
        if step == steps - 1:
            distance = torch.linalg.matrix_norm(product - identity)
        t = product * (-0.5 * mu.pow(3))
        t.diagonal().add_(1.5 * mu)
        if step < steps - 1:
            y = y @ t
        z = t @ z if step else t
        lowest = 0.5 * mu * lowest * (3.0 - (mu * lowest).square())
    return torch.where(distance < _DIVERGED, z / size.sqrt(), torch.nan)


def steps_for(condition: float) -> int:
    """Steps after which `newton_schulz` has converged for a condition number up to `condition`."""
    lowest, steps = 1.0 / math.sqrt(condition), 1
    while 1.0 - lowest * lowest > _CLOSE:
        mu = math.sqrt(3.0 / (1.0 + lowest + lowest * lowest))
        lowest = 0.5 * mu * lowest * (3.0 - mu * mu * lowest * lowest)
        steps += 1
    return steps
