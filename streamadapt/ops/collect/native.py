"""`collect` with ATen kernels, for every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamadapt.ops.collect.staged import StagedMoments

_ELEMENTWISE = 0  # ATen's number for reduction="none"
_NO_EPS = 1e-30  # keeps a variance of zero from becoming an infinite inverse


class Scratch:
    """One reusable fp32 buffer, as large as the largest BatchNorm input of a step.

    A fresh temporary of that size would be mapped and page-faulted anew for every layer, which
    costs as much as the sums themselves.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """An uninitialised contiguous fp32 tensor of `x`'s shape and device."""
        buffer = self._buffer
        if buffer is None or buffer.device != x.device or buffer.numel() < x.numel():
            self._buffer = None  # freed before its successor is allocated
            with torch.inference_mode(False):
                buffer = torch.empty(x.numel(), dtype=torch.float32, device=x.device)
            self._buffer = buffer
        return buffer[: x.numel()].view(x.shape)


def collect(x: Tensor, *, scratch: Scratch, exact: bool) -> StagedMoments:
    """Mean and inverse standard deviation of every (frame, channel) of `x`.

    `torch.var_mean` on the CPU runs one scalar Welford recurrence an element and takes longer than
    many convolutions. Two ways around it:

    - fast: group normalisation with one channel a group computes per-frame moments in one
      vectorised, numerically stable pass. Its normalised output is thrown away, and it is still
      the cheapest way found. Mean to about 2 ulp. A channels-last batch of one has a
      kernel of its own, whose mean is only good to about `sqrt(positions)` ulp.
    - `exact`: mean, subtract it into a scratch buffer, sum of the rest (which corrects the mean to
      half an ulp), norm of the rest. For estimates that accumulate for ever.

    Args:
        x: `[frames, channels, *spatial]`, any float dtype, at least one frame and position;
            contiguous or channels-last is fastest. Detached.
        scratch: the buffer to work in, of one step at a time.
        exact: see above.
    """
    if x.dim() == 2:
        mean = x.to(dtype=torch.float32, copy=True)
        return StagedMoments(mean, torch.full_like(mean, torch.inf))
    if x.device.type != "cpu" or x.dtype == torch.float64:
        # In half precision var_mean would return half precision.
        wide = x if x.dtype == torch.float64 else x.float()
        std, mean = torch.std_mean(wide.flatten(2), dim=2, correction=0)
        return StagedMoments(mean.float(), std.reciprocal_().float())
    if _channels_last(x):
        if x.shape[0] == 1 and not exact and x.dtype == torch.float32:
            # A batch of one: the batch's moments are the frame's.
            mean, var = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
            return StagedMoments(mean.unsqueeze(0), var.unsqueeze(0).rsqrt_())
        return _channels_last_passes(x.movedim(1, -1).flatten(1, -2), scratch, exact)
    if exact:
        return _exact_passes(x.flatten(2), scratch)
    frames, channels, *spatial = x.shape
    _, mean, inverse = torch.native_group_norm(
        x.float().contiguous(),
        None,
        None,
        frames,
        channels,
        math.prod(spatial),
        channels,
        _NO_EPS,
    )
    return StagedMoments(mean, inverse)


def _exact_passes(flat: Tensor, scratch: Scratch) -> StagedMoments:
    """`flat` is `[frames, channels, positions]`."""
    positions = flat.shape[2]
    mean = torch.mean(flat, dim=2, dtype=torch.float32)
    rest = torch.sub(flat, mean.unsqueeze(2), out=scratch.like(flat))
    inverse = torch.linalg.vector_norm(rest, dim=2).reciprocal_().mul_(positions**0.5)
    return StagedMoments(mean.add_(rest.sum(dim=2), alpha=1.0 / positions), inverse)


def _channels_last_passes(flat: Tensor, scratch: Scratch, exact: bool) -> StagedMoments:
    """`flat` is `[frames, positions, channels]`, channels innermost in memory."""
    positions = flat.shape[1]
    mean = torch.mean(flat, dim=1, dtype=torch.float32)
    squares, shift = scratch.like(flat), mean.unsqueeze(1)
    # A norm along an outer dimension is not vectorised; squares and a sum are.
    if exact:
        torch.sub(flat, shift, out=squares)
        mean.add_(squares.sum(dim=1), alpha=1.0 / positions)
        squares.square_()
    else:
        torch.ops.aten.mse_loss.out(flat, shift, _ELEMENTWISE, out=squares)  # one pass for both
    inverse = torch.sum(squares, dim=1).rsqrt_().mul_(positions**0.5)
    return StagedMoments(mean, inverse)


def _channels_last(x: Tensor) -> bool:
    if x.is_contiguous():
        return False
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
