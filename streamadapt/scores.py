"""Where a model's output has its class scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NAMES = ("out", "logits")  # of torchvision's segmentation models, and of Transformers'


def class_scores(output: Any) -> Tensor | None:
    """Class scores `[frames, classes, ...]` of a classifier's or a segmentation model's output.

    The output itself, or a mapping's entry `out` or `logits`, `[frames, classes]` or
    `[frames, classes, height, width]`. A mapping's entry of three dimensions is none: detectors
    return `[frames, queries, classes]` under these names.

    Returns:
        A floating-point tensor with two dimensions at least; None: the output has no such thing.

    Example:
        >>> import torch
        >>> class_scores({"out": torch.zeros(2, 21, 4, 4), "aux": None}).shape
        torch.Size([2, 21, 4, 4])
    """
    found = main_output(output)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 2:
        return None
    return None if found is not output and found.dim() == 3 else found


def main_output(output: Any) -> Any:
    """A mapping's entry `out` or `logits`; any other output itself."""
    if isinstance(output, Mapping):
        return next((output[name] for name in _NAMES if name in output), output)
    return output
