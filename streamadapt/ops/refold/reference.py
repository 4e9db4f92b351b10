"""The specification of `refold_`, in float64."""

from __future__ import annotations

from torch import Tensor


def refold(
    original: Tensor,
    shift: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    dim: int,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that does what a layer and a BatchNorm after it do.

    `weight = original s`, `bias = beta + (shift - mean) s` with `s = gamma / sqrt(var + eps)`.

    Args:
        original: the layer's own weight.
        shift: its own bias, `[channels]`; None: none.
        gamma: the BatchNorm's factor, `[channels]`.
        beta: what it adds, `[channels]`.
        mean: its running mean, `[channels]`.
        var: its running variance, `[channels]`.
        eps: what it adds to the variance.
        dim: of `original`, along which its output channels lie.
        groups: into which `dim` is divided last: a transposed convolution's channels lie group by
            group along dimension 0. 1 elsewhere.

    Returns:
        float64 tensors of the shapes of `original` and `gamma`.
    """
    scale = gamma.double() / (var.double() + eps).sqrt()
    bias = beta.double() - mean.double() * scale
    if shift is not None:
        bias = bias + shift.double() * scale
    shape = [1] * original.dim()
    if groups == 1:
        shape[dim] = -1
        return original.double() * scale.view(shape), bias
    parts = original.double().unflatten(0, (groups, -1))
    shape = [groups, 1, -1, *([1] * (original.dim() - 2))]
    return (parts * scale.view(shape)).flatten(0, 1), bias
