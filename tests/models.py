"""Small networks and an independent reference for the tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics and affine parameters that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for module in nn.Module.modules(model):
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                shape = module.running_mean.shape
                module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.5)
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
                module.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(shape, generator=generator) * 0.2)
    return model.eval()


class Residual(nn.Module):
    """Three BatchNorms, one of them on a branch, and a linear head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=1e-3)
        self.conv3 = nn.Conv2d(width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + self.bn3(self.conv3(x)))
        return self.head(x.mean(dim=(2, 3)))


def residual(seed: int = 0) -> nn.Module:
    """A `Residual` with random weights, in eval mode."""
    return randomise(Residual(), seed)


def single(channels: int = 4) -> nn.BatchNorm2d:
    """One BatchNorm layer as a model."""
    module = randomise(nn.BatchNorm2d(channels))
    assert isinstance(module, nn.BatchNorm2d)
    return module


class ActivatedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm that also applies its activation, as timm's `BatchNormAct2d` does."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(super().forward(x))


class FrozenBatchNorm(nn.Module):
    """A BatchNorm made of four buffers, as torchvision's `FrozenBatchNorm2d` is."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.rand(channels) + 0.5)
        self.register_buffer("bias", torch.randn(channels))
        self.register_buffer("running_mean", torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def frames(count: int, *, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Random images `[count, 3, 8, 8]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator) * scale + shift


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, copied."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def population(inputs: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Float64 mean and population variance of all values of each channel."""
    flat = np.concatenate(
        [x.detach().double().numpy().transpose(1, 0, 2, 3).reshape(x.shape[1], -1) for x in inputs],
        axis=1,
    )
    return flat.mean(axis=1), flat.var(axis=1)
