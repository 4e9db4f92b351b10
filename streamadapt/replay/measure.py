"""Takes a policy's answers batch by batch and keeps what is reported of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.result import PolicySeries
from streamadapt.replay.scores import DIVERSITY_FRAMES, diversity, reliability

DISTANCE_SAMPLES, LAYER_SAMPLES = 400, 100


class Meter:
    """What one policy did; a label of -1 is unknown and counts nowhere.

    Args:
        batches: how many there will be; distances are taken at most 400 times, those of single
            layers at most 100 times.
    """

    def __init__(self, batches: int) -> None:
        self._every = max(-(-batches // DISTANCE_SAMPLES), 1)
        taken = -(-batches // self._every)
        self._layers_every = self._every * max(-(-taken // LAYER_SAMPLES), 1)
        self._correct: list[NDArray[np.bool_]] = []
        self._sure: list[NDArray[np.float64]] = []
        self._labelled: list[NDArray[np.bool_]] = []
        self._recent: deque[NDArray[np.float64]] = deque()
        self._confidence: list[float] = []
        self._diversity: list[float] = []
        self._distance: list[float | None] = []
        self._layer_distance: dict[str, list[float]] = {}
        self._layer_batches: list[int] = []
        self._adapted: list[bool] = []
        self._seconds: list[float] = []

    def wants_distance(self) -> bool:
        """Whether the batch to come is one at which the distance is taken."""
        return len(self._adapted) % self._every == 0

    def take(
        self,
        scores: object,
        labels: NDArray[np.int64],
        *,
        seconds: float,
        adapted: bool,
        distance: Mapping[str, float] | None,
    ) -> None:
        """Note the answer to one batch.

        Raises:
            ConfigurationError: it is not scores.
            DataError: a label that the model does not know.
        """
        right, probabilities = _judge(scores, labels)
        sure = probabilities.max(axis=1)
        self._correct.append(right)
        self._sure.append(sure)
        self._labelled.append(labels >= 0)
        self._confidence.append(short(float(sure.mean())))
        self._diversity.append(short(self._current_diversity(probabilities)))
        known = distance if distance else None
        mean = None if known is None else short(sum(known.values()) / len(known))
        self._distance.append(mean)
        if known is not None and len(self._adapted) % self._layers_every == 0:
            self._layer_batches.append(len(self._adapted))
            for name, value in known.items():
                self._layer_distance.setdefault(name, []).append(short(value))
        self._adapted.append(adapted)
        self._seconds.append(short(seconds))

    def series(self, *, name: str, description: str, oracle: bool) -> PolicySeries:
        """Everything taken so far."""
        correct, labelled = np.concatenate(self._correct), np.concatenate(self._labelled)
        return PolicySeries(
            name=name,
            description=description,
            oracle=oracle,
            correct=correct,
            confidence=self._confidence,
            diversity=self._diversity,
            reliability=reliability(np.concatenate(self._sure)[labelled], correct[labelled]),
            distance=self._distance,
            layer_distance=self._layer_distance,
            layer_batches=self._layer_batches,
            adapted=self._adapted,
            latency_seconds=self._seconds,
        )

    def _current_diversity(self, probabilities: NDArray[np.float64]) -> float:
        self._recent.append(probabilities)
        while sum(map(len, self._recent)) - len(self._recent[0]) >= DIVERSITY_FRAMES:
            self._recent.popleft()
        return diversity(np.concatenate(self._recent)[-DIVERSITY_FRAMES:])


def short(value: float) -> float:
    """Six digits: more than any chart shows, and half the file."""
    return float(f"{value:.6g}")


def _judge(
    scores: object, labels: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether each answer is the label, and the softmax."""
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(labels):
        shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ConfigurationError(
            f"The model must return class scores [{len(labels)}, classes], got {shape}. "
            "Name a factory that returns a classifier."
        )
    if int(labels.max()) >= scores.shape[1]:
        raise DataError(
            f"The data have the label {int(labels.max())}, the model knows the classes 0 to "
            f"{scores.shape[1] - 1}. They do not belong together."
        )
    probabilities = torch.softmax(scores.detach().cpu().double(), dim=1).numpy()
    return scores.argmax(dim=1).cpu().numpy() == labels, probabilities
