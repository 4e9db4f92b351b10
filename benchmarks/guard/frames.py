"""Batches of a scenario as a model takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.models import IMAGENET_MEAN, IMAGENET_STD, normalize
from streamadapt.replay import Scenario, load_data
from streamadapt.replay.models import load_model
from streamadapt.replay.stream import Stream


@dataclass(frozen=True)
class Shown:
    """A batch: `[B, C, H, W]`, labels and domains `[B]`, and the camera's time after it."""

    frames: Tensor
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    seconds: float


def shown(
    scenario: Scenario, *, frames_per_second: float = 25.0
) -> tuple[nn.Module, Iterator[Shown]]:
    """The scenario's model, in evaluation mode, and its batches."""
    assert isinstance(scenario.model, str) and isinstance(scenario.data, str)
    stream = Stream(scenario, data=load_data(scenario.data))

    def batches() -> Iterator[Shown]:
        for batch in stream:
            frames = normalize(batch.frames, mean=IMAGENET_MEAN, std=IMAGENET_STD)
            end = batch.start_index + len(batch.labels)
            yield Shown(frames, batch.labels, batch.domains, end / frames_per_second)

    return load_model(scenario.model).eval(), batches()
