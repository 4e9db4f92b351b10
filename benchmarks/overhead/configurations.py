"""What is measured: networks on batches of one shape, and ways of running them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks import models

Forward = Callable[[Tensor], Any]
BATCHES = 4  # shown in turn
Kind = Literal["frozen", "adapted", "peer"]


class NotAvailableError(RuntimeError):
    """A variant cannot be built here; says why."""


def reason(error: Exception) -> dict[str, Any]:
    """What a row has in place of a measurement; `failed` where that was not to be expected."""
    if isinstance(error, NotAvailableError):
        return {"not_available": str(error)}
    (line, *_) = (str(error) or "no message").splitlines()
    return {"not_available": f"{type(error).__name__}: {line}", "failed": True}


@dataclass(frozen=True)
class Configuration:
    """A network on batches of one shape, layout and dtype."""

    model: str
    batch: int
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "float16"]
    image_size: int

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}, {self.layout}, {self.dtype}"

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout as PyTorch names it."""
        return torch.channels_last if self.layout == "NHWC" else torch.contiguous_format


@dataclass(frozen=True)
class Setting:
    """A configuration on a device, with the frames that are shown again and again.

    Attributes:
        configuration: what is measured.
        device: where.
        batches: `[B, 3, H, W]` each, ordinary tensors.
        stack: whatever has to be undone when the configuration is done.
    """

    configuration: Configuration
    device: torch.device
    batches: tuple[Tensor, ...]
    stack: ExitStack


Build = Callable[[nn.Module, Setting], Forward]
"""Makes a forward that is ready to be timed, of a copy of the model that it may keep.

Called under `torch.inference_mode`. Raises `NotAvailableError` where that cannot be done.
"""


@dataclass(frozen=True)
class Variant:
    """A way of running a network.

    Attributes:
        build: makes it.
        kind: `frozen`: a deployment without adaptation; `adapted`: by this library; `peer`: by
            other means.
        costly_seconds: how long building it may well take, of time that is limited; 0: not long.
    """

    build: Build
    kind: Kind
    costly_seconds: float = 0.0


def set_up(
    configuration: Configuration, device: torch.device, stack: ExitStack
) -> tuple[nn.Module, Setting]:
    """The network of a configuration, with statistics that fit, and its setting."""
    size = configuration.image_size
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, configuration.dtype)
    batches = tuple(
        torch.randn(configuration.batch, 3, size, size, generator=generator)
        .to(device, dtype)
        .contiguous(memory_format=configuration.memory_format)
        for _ in range(BATCHES)
    )
    torch.manual_seed(0)
    base = getattr(models, configuration.model)()
    fit_statistics(base, size)
    base = base.to(device, dtype, memory_format=configuration.memory_format)
    return base, Setting(configuration, device, batches, stack)


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The BatchNorm layers of a network."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def fit_statistics(model: nn.Module, size: int) -> None:
    """Statistics that fit the random weights: activations stay in the range of a trained net's."""
    generator = torch.Generator().manual_seed(1)
    for norm in norms(model):
        norm.train().momentum = None
    with torch.no_grad():
        model(torch.randn(8, 3, min(size, 128), min(size, 128), generator=generator))
    for norm in norms(model):
        norm.eval().momentum = 0.1
