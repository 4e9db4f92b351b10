"""The specification of `collect`: two-pass moments in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def collect(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of every (frame, channel) over its positions.

    Args:
        x: `[frames, channels, *spatial]`, any float dtype and strides.

    Returns:
        Two float64 tensors `[frames, channels]`. Without positions both are zero.
    """
    flat = x.detach().double().reshape(*x.shape[:2], -1 if x.numel() else 0)
    if flat.shape[2] == 0:
        empty = torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
        return empty, empty.clone()
    mean = flat.mean(dim=2)
    return mean, (flat - mean.unsqueeze(2)).square().mean(dim=2)
