"""How sure and how varied a model's answers are, without labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def output_health(output: Any, entries: Tensor | None, rows: int) -> Tensor | None:
    """Mean entropy, mean confidence and effective number of classes, by row.

    Args:
        output: what the model returned; only scores `[frames, classes]` can be judged.
        entries: int `[frames]`, the row of each; None where there is one row.
        rows: how many.

    Returns:
        float32 `[rows, 3]`: nats; 0 to 1; exp of the entropy of the mean prediction, 1 to classes.
        NaN for a row without frames. None for any other output.
    """
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        return None
    if not output.is_floating_point() or not len(output):
        return None
    if entries is not None and len(entries) != len(output):
        return None
    with torch.inference_mode(False), torch.no_grad():
        log_p = torch.log_softmax(output.detach().float(), dim=1)
        p = log_p.exp()
        each = torch.cat([_entropy(p).unsqueeze(1), p.amax(dim=1, keepdim=True), p], dim=1)
        if entries is None:
            mean = each.mean(dim=0, keepdim=True)
        else:
            weights = torch.zeros(rows, len(output), device=output.device)
            weights[entries, torch.arange(len(output), device=output.device)] = 1.0
            mean = weights @ each / weights.sum(dim=1, keepdim=True)
        return torch.cat([mean[:, :2], _entropy(mean[:, 2:]).exp().unsqueeze(1)], dim=1)


def _entropy(p: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(p).sum(dim=1)
    return entropy
