"""Entropy of predictions: the loss of the policies that learn without labels."""

from __future__ import annotations

import math

from torch import Tensor


def entropy(scores: Tensor) -> Tensor:
    """Shannon entropy of each frame's prediction, in nats.

    `H = -sum_c p_c ln p_c` with `p = softmax(scores)`, between 0 and `ln C`.

    Args:
        scores: logits, `[B, C]`.

    Returns:
        `[B]`, differentiable.

    >>> import torch
    >>> round(entropy(torch.zeros(1, 10)).item() / math.log(10), 6)
    1.0
    """
    log_p = scores.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def reliable(entropies: Tensor, *, classes: int, e_margin: float) -> Tensor:
    """Which frames are certain enough to learn from: `H < e_margin · ln C`. NaN never is.

    Args:
        entropies: `[B]`, of predictions over `classes`.
        classes: C.
        e_margin: as a share of the largest possible entropy, in (0, 1].

    Returns:
        `[B]` bool.
    """
    return entropies.detach() < e_margin * math.log(classes)
