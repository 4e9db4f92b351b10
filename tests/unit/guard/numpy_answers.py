"""The guard's figures as they are defined, frame by frame, in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def softmax(scores: Array) -> Array:
    """Over the second dimension."""
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def entropy(p: Array, axis: int) -> Array:
    """Nats."""
    return -np.sum(p * np.log(np.where(p > 0.0, p, 1.0)), axis=axis)


class Camera:
    """Every frame that a camera showed, `[classes, positions]`, and how much it still counts.

    A step with n frames leaves the frames before it a share of `1 - n / window`.
    """

    def __init__(self, *, window: float, apart: float) -> None:
        self.window, self.apart = window, apart
        self.steps: list[int] = []
        self.answers: list[Array] = []
        self.weights: list[float] = []

    def show(self, step: int, scores: Array) -> None:
        keep = max(0.0, 1.0 - len(scores) / self.window)
        self.weights = [keep * weight for weight in self.weights] + [1.0] * len(scores)
        self.answers += list(softmax(scores))
        self.steps += [step] * len(scores)

    def mean(self, values: Array) -> Array:
        """Weighted mean over frames."""
        return np.average(values, axis=0, weights=self.weights)

    @property
    def frames(self) -> float:
        return sum(self.weights)

    @property
    def classes(self) -> Array:
        return np.stack(self.answers).argmax(axis=1)

    @property
    def entropy(self) -> float:
        return float(self.mean(entropy(np.stack(self.answers), axis=1).mean(axis=1)))

    @property
    def information(self) -> float:
        """`sum w(f) p(c|f) ln(p(c|f) / p(c))`, over frames, positions and classes."""
        p = np.stack(self.answers)
        overall = self.mean(p.mean(axis=2))
        ratio = np.where(p > 0.0, p, 1.0) / overall[None, :, None]
        return float(self.mean((p * np.log(ratio)).sum(axis=1).mean(axis=1)))

    @property
    def flips(self) -> float:
        """Share of unlike answers of a frame and the one before it, if that was not long ago."""
        classes, steps = self.classes, self.steps
        pairs = [k for k in range(1, len(steps)) if steps[k] - steps[k - 1] <= self.apart]
        unlike = [self.weights[k] * (classes[k] != classes[k - 1]).mean() for k in pairs]
        return sum(unlike) / sum(self.weights[k] for k in pairs) if pairs else 0.0


def estimated_gain(adapted: Camera, source: Camera) -> float:
    """`0.80 (i - i') - 0.49 (F - F') - 0.42 D i'^2`, with `i = I / ln min(K, n)`."""
    most = math.log(min(max(adapted.frames, 2.0), len(adapted.answers[0])))
    i, j = adapted.information / most, source.information / most
    unlike = adapted.mean((adapted.classes != source.classes).mean(axis=1))
    return float(0.80 * (i - j) - 0.49 * (adapted.flips - source.flips) - 0.42 * unlike * j**2)
