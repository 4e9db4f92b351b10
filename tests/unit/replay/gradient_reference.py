"""What the policies that learn by gradient have to do: their papers' formulas in float64 NumPy.

Gradients are central differences, so that nothing here is differentiated the way the policies are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
CLASSES = 3


def network() -> nn.Sequential:
    """Linear, BatchNorm, tanh, linear, BatchNorm, linear; float64."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4), nn.BatchNorm1d(4)
        ).append(nn.Linear(4, CLASSES))
        for layer in model:
            if isinstance(layer, nn.BatchNorm1d):
                nn.init.uniform_(layer.weight, 0.5, 2.0)
                nn.init.normal_(layer.bias)
        nn.init.normal_(model[-1].weight)  # so that some answers are certain and others not
    return model.double().eval()


def batches(count: int, *, frames: int = 12, scale: float = 2.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        scale * torch.randn(frames, 4, generator=generator, dtype=torch.float64)
        for _ in range(count)
    ]


def affine(model: nn.Module) -> Array:
    parts = [
        p.detach().numpy().ravel()
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for p in (layer.weight, layer.bias)
    ]
    return np.concatenate(parts).astype(np.float64)


def softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def entropies(scores: Array) -> Array:
    p = softmax(scores)
    return -(p * np.log(p)).sum(1)


def forward(model: nn.Sequential, theta: Array, x: Array) -> Array:
    """The network of `network()` with batch statistics, `theta` = (g1, b1, g2, b2)."""
    weights = [
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in model
        if isinstance(layer, nn.Linear)
    ]

    def normalised(z: Array, scale: Array, shift: Array) -> Array:
        return (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) * scale + shift

    g1, b1, g2, b2 = np.split(theta, [5, 10, 14])
    z = np.tanh(normalised(x @ weights[0][0].T + weights[0][1], g1, b1))
    z = normalised(z @ weights[1][0].T + weights[1][1], g2, b2)
    return np.asarray(z @ weights[2][0].T + weights[2][1])


def gradient(loss: Callable[[Array], float], theta: Array) -> Array:
    step = 1e-5
    unit = np.eye(len(theta)) * step
    return np.array([(loss(theta + u) - loss(theta - u)) / (2 * step) for u in unit])


@dataclass
class SGD:
    rate: float
    velocity: Array | float = 0.0
    first: bool = True

    def step(self, theta: Array, slope: Array) -> Array:
        self.velocity = slope if self.first else 0.9 * self.velocity + slope
        self.first = False
        return theta - self.rate * self.velocity


@dataclass
class Adam:
    rate: float
    steps: int = 0
    m: Array | float = 0.0
    v: Array | float = 0.0

    def step(self, theta: Array, slope: Array) -> Array:
        self.steps += 1
        self.m = 0.9 * self.m + 0.1 * slope
        self.v = 0.999 * self.v + 0.001 * slope**2
        m, v = self.m / (1 - 0.9**self.steps), self.v / (1 - 0.999**self.steps)
        return np.asarray(theta - self.rate * m / (np.sqrt(v) + 1e-8))


@dataclass
class Reference:
    """What every method here shares: a network, its parameters, an optimiser."""

    model: nn.Sequential
    optimizer: SGD | Adam
    theta: Array = field(init=False)

    def __post_init__(self) -> None:
        self.theta = affine(self.model)

    def scores(self, x: Array, theta: Array | None = None) -> Array:
        return forward(self.model, self.theta if theta is None else theta, x)


@dataclass
class EATAReference(Reference):
    alpha: float = 0.0
    d_margin: float = 0.85
    fisher: Array | float = 0.0
    source: Array = field(init=False)
    average: Array | None = None
    unreliable: int = 0
    redundant: int = 0
    learned: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source = self.theta.copy()

    def measure(self, frames: Array) -> None:
        squares = []
        for start in range(0, len(frames), 64):
            x = frames[start : start + 64]
            labels = self.scores(x).argmax(1)

            def loss(theta: Array, x: Array = x, labels: Array = labels) -> float:
                p = softmax(self.scores(x, theta))
                return float(-np.log(p[np.arange(len(x)), labels]).mean())

            squares.append(gradient(loss, self.theta) ** 2)
        self.fisher = np.mean(squares, axis=0)

    def step(self, x: Array) -> None:
        limit = 0.4 * math.log(CLASSES)
        p = softmax(self.scores(x))
        h = entropies(self.scores(x))
        chosen = h < limit
        self.unreliable += int((~chosen).sum())
        if self.average is not None:
            m = self.average
            cosine = p @ m / (np.linalg.norm(p, axis=1) * np.linalg.norm(m))
            self.redundant += int((chosen & (cosine >= self.d_margin)).sum())
            chosen &= cosine < self.d_margin
        self.learned += int(chosen.sum())
        if not chosen.any():
            return
        weight = np.exp(limit - h[chosen])
        mean = p[chosen].mean(0)
        self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean

        def loss(theta: Array) -> float:
            fit = (weight * entropies(self.scores(x, theta))[chosen]).mean()
            return float(fit + self.alpha * (self.fisher * (theta - self.source) ** 2).sum())

        self.theta = self.optimizer.step(self.theta, gradient(loss, self.theta))


@dataclass
class SARReference(Reference):
    rho: float = 0.5
    reset_below: float = 0.0
    free: slice = field(default_factory=lambda: slice(None))
    mean_loss: float | None = None
    unreliable: int = 0
    no_longer: int = 0
    resets: list[int] = field(default_factory=list)
    batch: int = 0

    def slope(self, loss: Callable[[Array], float], theta: Array) -> Array:
        found = gradient(loss, theta)
        out = np.zeros_like(found)
        out[self.free] = found[self.free]
        return out

    def step(self, x: Array) -> None:
        self.batch += 1
        limit = 0.4 * math.log(CLASSES)
        first = entropies(self.scores(x)) < limit
        self.unreliable += int((~first).sum())
        if not first.any():
            return
        g = self.slope(lambda t: float(entropies(self.scores(x, t))[first].mean()), self.theta)
        top = self.theta + self.rho * g / (np.linalg.norm(g) + 1e-12)
        both = first & (entropies(self.scores(x, top)) < limit)
        self.no_longer += int(first.sum() - both.sum())
        if not both.any():
            return

        def loss(theta: Array) -> float:
            return float(entropies(self.scores(x, theta))[both].mean())

        self.theta = self.optimizer.step(self.theta, self.slope(loss, top))
        old = self.mean_loss
        self.mean_loss = loss(top) if old is None else 0.9 * old + 0.1 * loss(top)
        if self.mean_loss < self.reset_below:
            self.theta, self.mean_loss = affine(self.model), None
            self.optimizer = SGD(self.optimizer.rate)
            self.resets.append(self.batch - 1)
