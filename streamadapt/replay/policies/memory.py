"""A memory of frames with equal room for every predicted class."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


class BalancedMemory:
    """RoTTA's memory bank: balanced over predicted classes, preferring the new and the certain.

    A frame's score is `timeliness / (1 + exp(-age / capacity)) + uncertainty H / ln(classes)`,
    with `H` the entropy of its prediction and its age in frames offered since. While its class
    holds less than `capacity / classes` frames and the memory has room, a frame is simply added.
    Otherwise the frame with the highest score must go: of its own class if that has its share, of
    the largest classes if not. It goes only if its score is higher than the newcomer's; if not,
    the newcomer is not remembered.

    Args:
        capacity: frames.
        classes: number of classes.
        timeliness: weight of age.
        uncertainty: weight of entropy.

    Reference:
        Yuan, Xie, Li, "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023,
        arXiv:2303.13899.
    """

    def __init__(
        self, capacity: int, *, classes: int, timeliness: float = 1.0, uncertainty: float = 1.0
    ) -> None:
        self.capacity, self.classes = capacity, classes
        self._weights = timeliness, uncertainty / math.log(max(classes, 2))
        self._labels = np.full(capacity, -1)
        self._born = np.zeros(capacity, dtype=np.int64)
        self._entropy = np.zeros(capacity)
        self._held = 0
        self._clock = 0
        self._frames: Tensor | None = None

    def __len__(self) -> int:
        return self._held

    def offer(self, frame: Tensor, *, label: int, entropy: float) -> None:
        """Remember a frame, or not; all others are one frame older afterwards.

        Args:
            frame: copied.
            label: predicted class.
            entropy: of the prediction, in nats; a frame whose entropy is not finite is refused.
        """
        if math.isfinite(entropy):
            slot = self._place(label, entropy)
            if slot is not None:
                self._put(slot, frame, label, entropy)
        self._clock += 1

    def frames(self) -> Tensor:
        """A copy of all frames, class by class, within a class as they came."""
        assert self._frames is not None, "nothing is remembered"
        return self._frames[torch.from_numpy(self._ordered(self._labels >= 0))]

    def _place(self, label: int, entropy: float) -> int | None:
        """The slot for a newcomer; None if it is to be forgotten."""
        labels = self._labels
        rivals = labels == label
        if np.count_nonzero(rivals) < self.capacity / self.classes:
            if self._held < self.capacity:
                return self._held
            sizes = np.bincount(labels, minlength=self.classes)
            rivals = (sizes == sizes.max())[labels]
        timeliness, uncertainty = self._weights
        ages = self._clock - self._born
        scores = timeliness / (1.0 + np.exp(-ages / self.capacity)) + uncertainty * self._entropy
        worst = scores[rivals].max()
        if worst <= timeliness / 2.0 + uncertainty * entropy:
            return None
        # Of several equally bad ones the last goes, in the order of `frames`.
        return int(self._ordered(rivals & (scores == worst))[-1])

    def _put(self, slot: int, frame: Tensor, label: int, entropy: float) -> None:
        if self._frames is None:
            self._frames = frame.new_empty((self.capacity, *frame.shape))
        self._frames[slot] = frame
        self._held += self._labels[slot] < 0
        self._labels[slot], self._born[slot], self._entropy[slot] = label, self._clock, entropy

    def _ordered(self, chosen: np.ndarray) -> np.ndarray:
        """Slots of the chosen frames, class by class, within a class as they came."""
        slots = np.flatnonzero(chosen)
        return slots[np.lexsort((self._born[slots], self._labels[slots]))]
