"""`torch.compile` with Inductor's freezing, which makes constants of weights."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.between.builder import Builder, ordinary_copy

_FREEZING = threading.Lock()  # of several builds each would take back what the other had set


def inductor_frozen(example: Tensor, *, moved: float = 0.003) -> Builder:
    """Batches in between are answered by the model compiled and frozen for one shape of batch.

    A compiler is at work for it on all cores, in the background, whenever statistics have moved. It
    is for streams that stay in their world for long.

    Args:
        example: a batch as they come: shape, dtype, device, memory format.
        moved: see `Builder`.
    """
    example = ordinary_copy(example)

    def build(model: nn.Module) -> Any:
        import torch._inductor.config as inductor  # the compiler comes with it

        # Graphs of a former build are let go with its function; they share no cache.
        compiled = torch.compile(model, fullgraph=True, dynamic=False)

        def run(frames: Tensor) -> Any:
            # Compiled for tensors like the example: an inference tensor would compile it anew.
            with torch.inference_mode(False), torch.no_grad():
                return compiled(_ordinary(frames))

        # Where it is given to `torch.compile` as an option, it comes too late for weights to become
        # constants. It is everybody's while this is compiled: others are frozen as well, which
        # changes answers of nobody who leaves the weights alone.
        with _FREEZING, inductor.patch(freezing=True):
            run(example)
        return run

    return Builder(build, name="inductor_frozen", example=example, moved=moved)


def _ordinary(frames: Tensor) -> Tensor:
    if not frames.is_inference():
        return frames.detach()
    return torch.from_numpy(frames.numpy()) if _shares_with_numpy(frames) else frames.clone()


def _shares_with_numpy(frames: Tensor) -> bool:
    return frames.device.type == "cpu" and frames.dtype in (torch.float32, torch.float64)
