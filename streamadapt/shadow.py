"""How far the adapted candidate's answers lie from the source's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from streamadapt.scores import main_output


def compare_outputs(source: Any, candidate: Any) -> Tensor | None:
    """Agreement and relative difference of two outputs of the same structure.

    Args:
        source: the model's output, any structure; its first floating-point tensor counts.
        candidate: the other output.

    Returns:
        `[2]` float64 on the device: the share of equal top classes along dimension 1 (NaN for
        outputs without a class dimension), and `|candidate - source| / |source|`. None when the
        outputs hold no comparable tensor.
    """
    first, second = _first_tensor(source), _first_tensor(candidate)
    if first is None or second is None or first.shape != second.shape or first.numel() == 0:
        return None
    a, b = first.detach().double(), second.detach().double()
    relative = (b - a).norm() / a.norm().clamp(min=1e-300)
    if a.dim() < 2 or a.shape[1] < 2:
        agreement = torch.full_like(relative, torch.nan)
    else:
        agreement = (a.argmax(dim=1) == b.argmax(dim=1)).double().mean()
    return torch.stack([agreement, relative])


def _first_tensor(output: Any) -> Tensor | None:
    for leaf in pytree.tree_leaves(main_output(output)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    return None
