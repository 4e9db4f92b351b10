"""How a stream does without labels: its answers, and its distance from the source."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamadapt.journal.format import Header


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


def distances_by_layer(states: NDArray[np.float32], header: Header) -> NDArray[np.float32]:
    """Location-scale distance of states from the source, mean over each layer's channels.

    Args:
        states: `[rows, 2, C]`, mean and variance.
        header: has source and layers.

    Returns:
        float32 `[rows, layers]`.

    Reference:
        `streamadapt.drift.location_scale_distance`, which does the same on tensors.
    """
    eps = header.eps().astype(np.float32)
    source, var = header.source[1] + eps, states[:, 1] + eps
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shift = (states[:, 0] - header.source[0]) ** 2 / np.sqrt(var * source)
        each = shift + 0.5 * np.log(var / source) ** 2
    widths = np.array([layer.channels for layer in header.layers])
    mean: NDArray[np.float32] = np.add.reduceat(each, header.starts(), axis=1) / widths
    return mean.astype(np.float32)
