"""`collect` with ATen kernels, for every device."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """One reusable fp32 buffer, as large as the largest BatchNorm input of a step.

    A fresh temporary of that size would be mapped and page-faulted anew for every layer, which
    costs as much as the sums themselves.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """An uninitialised contiguous fp32 tensor of `x`'s shape and device."""
        if self._buffer is None or self._buffer.device != x.device:
            self._buffer = None
        if self._buffer is None or self._buffer.numel() < x.numel():
            with torch.inference_mode(False):
                self._buffer = torch.empty(x.numel(), dtype=torch.float32, device=x.device)
        return self._buffer[: x.numel()].view(x.shape)


def collect(x: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Mean and population variance of every (frame, channel), fp32.

    `torch.var_mean` on the CPU runs one scalar Welford recurrence an element and takes longer than
    many convolutions. Here each pass is a vectorised ATen kernel: sum, subtract the frame's own
    mean into a scratch buffer, sum of the remainder (corrects the mean to half an ulp), and its
    squared norm. Subtracting first keeps the variance exact to a few ulp whatever `|mean| / sigma`.

    Args:
        x: `[frames, channels, *spatial]`, any float dtype; contiguous or channels-last is fastest.
        scratch: the buffer to work in, of one step at a time.

    Returns:
        Two fp32 tensors `[frames, channels]`, detached. Without positions both are zero.
    """
    x = x.detach()
    frames, channels = x.shape[:2]
    if x.dim() == 2:
        return x.float().clone(), x.new_zeros(x.shape, dtype=torch.float32)
    if x.numel() == 0:
        return (
            x.new_zeros((frames, channels), dtype=torch.float32),
            x.new_zeros((frames, channels), dtype=torch.float32),
        )
    if x.dtype == torch.float64:
        var64, mean64 = torch.var_mean(x.flatten(2), dim=2, correction=0)
        return mean64.float(), var64.float()
    if x.device.type != "cpu":
        # var_mean in half precision returns half precision.
        var, mean = torch.var_mean(x.flatten(2).float(), dim=2, correction=0)
        return mean, var
    if _channels_last(x):
        return _collect_channels_last(x.movedim(1, -1).flatten(1, -2), scratch)
    return _collect_contiguous(x.flatten(2), scratch)


def _collect_contiguous(x: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """`x` is `[frames, channels, positions]`."""
    positions = x.shape[2]
    mean = x.sum(dim=2, dtype=torch.float32).div_(positions)
    rest = torch.sub(x, mean.unsqueeze(2), out=scratch.like(x))
    correction = rest.sum(dim=2).div_(positions)
    var = torch.linalg.vector_norm(rest, dim=2).square_().div_(positions)
    var.sub_(correction.square()).clamp_(min=0.0)
    return mean.add_(correction), var


def _collect_channels_last(x: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """`x` is `[frames, positions, channels]`, channels innermost in memory."""
    positions = x.shape[1]
    mean = x.sum(dim=1, dtype=torch.float32).div_(positions)
    rest = torch.sub(x, mean.unsqueeze(1), out=scratch.like(x))
    correction = rest.sum(dim=1).div_(positions)
    # A norm along an outer dimension is not vectorised; squares in place and a sum are.
    var = rest.square_().sum(dim=1).div_(positions)
    var.sub_(correction.square()).clamp_(min=0.0)
    return mean.add_(correction), var


def _channels_last(x: Tensor) -> bool:
    if x.is_contiguous():
        return False
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
