"""CORAL over a whole target set, baked into the classifier head."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.alignment.features import find_head, head_moments
from streamadapt.alignment.source import Coral


def coral(
    model: nn.Module,
    source: Coral | Iterable[Any],
    target_batches: Iterable[Any],
    *,
    layer: str | None = None,
    regularisation: float = 1.0,
    align_mean: bool = True,
) -> nn.Module:
    """A copy of a model whose head sees target features with the source's mean and covariance.

    The map of `Coral`, with the moments of the whole target set, in float64 and by eigenvalues::

        f' = (f - mu_t) A + mu_s      W' = W A^T      b' = b + W (mu_s - A^T mu_t)

    For AdaBN and CORAL together each domain is normalised by its own statistics: calibrate the
    source side on the model as it was, `coral(adabn(model, target), Coral.calibrate(model,
    source), target)`.

    Args:
        model: in eval mode; it is not changed.
        source: source batches, or a calibrated source side, which then brings the three settings
            below with it.
        target_batches: input tensors, or tuples that start with one.
        layer: name of the head; None for the last nn.Linear that the model executes.
        regularisation: as in `Coral`.
        align_mean: as in `Coral`.

    Returns:
        A plain model of the same type; the head has a bias even if it had none.

    Raises:
        UnsupportedModelError: the head is not an nn.Linear that runs once a forward on one feature
            vector a frame.
        ModelStateError: the model is in training mode.
        DataError: fewer than two frames on a side, or features that are not finite.

    Reference:
        Sun, Feng, Saenko, "Return of Frustratingly Easy Domain Adaptation", 2016,
        arXiv:1511.05547.
    """
    if not isinstance(source, Coral):
        source = Coral.calibrate(
            model, source, layer=layer, regularisation=regularisation, align_mean=align_mean
        )
    _, target = head_moments(model, target_batches, layer=source.layer, what="target_batches")
    twin: nn.Module = copy.deepcopy(getattr(model, "_orig_mod", model))
    bake(
        find_head(twin, source.layer),
        source,
        mean=target.mean,
        excess=source.excess(target.covariance),
    )
    return twin


def bake(head: nn.Linear, source: Coral, *, mean: Tensor, excess: Tensor) -> None:
    """Make a map part of a head's weight and bias, in float64 up to the last rounding.

    Args:
        head: of a copy; gets new parameters.
        source: where features are moved to.
        mean: of the target, `[D]` float64.
        excess: `A - I`, `[D, D]`.
    """
    with torch.inference_mode(False), torch.no_grad():
        old = head.weight.detach()
        weight, mean, excess = old.double(), mean.to(old.device), excess.to(old.device).double()
        shift = -(mean @ excess)
        if source.align_mean:
            shift = shift + source.mean.to(mean) - mean
        moved = weight @ shift
        if head.bias is not None:
            moved = moved + head.bias.double()
        trainable = head.weight.requires_grad
        head.weight = nn.Parameter((weight + weight @ excess.T).to(old), requires_grad=trainable)
        head.bias = nn.Parameter(moved.to(old), requires_grad=trainable)
