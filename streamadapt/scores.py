"""Where a model's output has its class scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NAMES = ("out", "logits")  # of torchvision's segmentation models, and of Transformers'


def class_scores(output: Any) -> Tensor | None:
    """Class scores `[frames, classes, ...]` of a classifier's or a segmentation model's output.

    The output itself, or a mapping's entry `out` or `logits`.

    Returns:
        A floating-point tensor with two dimensions at least; None: the output has no such thing.

    Example:
        >>> import torch
        >>> class_scores({"out": torch.zeros(2, 21, 4, 4), "aux": None}).shape
        torch.Size([2, 21, 4, 4])
    """
    found = main_output(output)
    if isinstance(found, Tensor) and found.is_floating_point() and found.dim() >= 2:
        return found
    return None


def main_output(output: Any) -> Any:
    """A mapping's entry `out` or `logits`; any other output itself."""
    if isinstance(output, Mapping):
        return next((output[name] for name in _NAMES if name in output), output)
    return output
