"""What befalls a camera: a batch of NaN frames, a covered lens; and how the runtime takes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamadapt.errors import ConfigurationError
from streamadapt.events import Event, FramesRejected
from streamadapt.processor import StreamProcessor
from streamadapt.replay.corruptions import corrupt
from streamadapt.replay.data import LabelledData
from streamadapt.replay.digits import PIXEL_MEAN, PIXEL_STD, normalize
from streamadapt.replay.scenario import Scenario

SPOILT_IN, COVERED_IN = "night", "noise"
"""Domains in whose middle they happen."""

_COVERED_BATCHES = 20
_PROBE_FRAMES = 320
_SNAPSHOT, _REASON = "before-the-lens-was-covered", "lens covered"


@dataclass(frozen=True)
class SpoiltBatch:
    """A batch of NaN frames on its way through the adapted model.

    Attributes:
        phase: where it came.
        frames: its size.
        rejected: how many frames the event said were rejected.
        answers: rows of the output that came back.
        statistics_unchanged: whether the statistics are what they were, to the bit.
    """

    phase: str
    frames: int
    rejected: int
    answers: int
    statistics_unchanged: bool


@dataclass(frozen=True)
class CoveredLens:
    """A run of black frames, which are valid input and ruin the statistics, and the rollback.

    Accuracies, in per cent, are of the statistics at that time, on probe frames of the same phase
    that nothing is learnt from.

    Attributes:
        phase: where it happened.
        frames: how many black frames.
        probe_frames: how many frames the accuracies rest on.
        distance_before: distance from the source before them.
        distance_after: after them.
        distance_restored: after the rollback to the snapshot that was taken before them.
        accuracy_before: before them.
        accuracy_after: after them.
        accuracy_restored: after the rollback.
        statistics_restored: whether the statistics are those before, to the bit.
    """

    phase: str
    frames: int
    probe_frames: int
    distance_before: float
    distance_after: float
    distance_restored: float
    accuracy_before: float
    accuracy_after: float
    accuracy_restored: float
    statistics_restored: bool


class Incidents:
    """What happens to an adapted model between two batches of a stream; never part of a score.

    Args:
        processor: runs the model that reads `streamadapt.replay.digits`.
        scenario: the stream; has domains named `SPOILT_IN` and `COVERED_IN`.
        data: the images of the stream, at the size of its frames.
    """

    def __init__(self, processor: StreamProcessor, scenario: Scenario, data: LabelledData) -> None:
        self._processor = processor
        self._batch = (scenario.batch_size, 3, *data.x.shape[1:3])
        self._probe, self._labels = _probe(scenario, data)
        self._spoilt_after = _middle(scenario, SPOILT_IN)
        self._covered_after = _middle(scenario, COVERED_IN)
        self._spoilt: SpoiltBatch | None = None
        self._covered: CoveredLens | None = None

    def after(self, batches: int) -> None:
        """Strike, if it is time."""
        if batches == self._spoilt_after:
            self._spoilt = self._spoil()
        if batches == self._covered_after:
            self._covered = self._cover()

    def outcome(self) -> tuple[SpoiltBatch, CoveredLens]:
        """What became of both, once the stream is over."""
        assert self._spoilt is not None and self._covered is not None
        return self._spoilt, self._covered

    def _spoil(self) -> SpoiltBatch:
        processor = self._processor
        seen: list[Event] = []
        before = _values(processor)
        unsubscribe = processor.subscribe(seen.append)
        output: Tensor = processor(torch.full(self._batch, torch.nan))
        processor.flush()
        unsubscribe()
        return SpoiltBatch(
            phase=SPOILT_IN,
            frames=self._batch[0],
            rejected=sum(event.frames for event in seen if isinstance(event, FramesRejected)),
            answers=len(output),
            statistics_unchanged=torch.equal(_values(processor), before),
        )

    def _cover(self) -> CoveredLens:
        processor = self._processor
        processor.snapshot(_SNAPSHOT)
        before, distance, accuracy = _values(processor), processor.drift().overall, self._accuracy()
        black = torch.full(self._batch, -PIXEL_MEAN / PIXEL_STD)
        for _ in range(_COVERED_BATCHES):
            processor(black)
        distance_after, accuracy_after = processor.drift().overall, self._accuracy()
        processor.rollback(_SNAPSHOT, reason=_REASON)
        return CoveredLens(
            phase=COVERED_IN,
            frames=_COVERED_BATCHES * self._batch[0],
            probe_frames=len(self._labels),
            distance_before=distance,
            distance_after=distance_after,
            distance_restored=processor.drift().overall,
            accuracy_before=accuracy,
            accuracy_after=accuracy_after,
            accuracy_restored=self._accuracy(),
            statistics_restored=torch.equal(_values(processor), before),
        )

    def _accuracy(self) -> float:
        """Of the statistics as they are, on a plain copy of the model: nothing is learnt."""
        answers = self._processor.adapted_model()(self._probe).argmax(dim=1).numpy()
        return 100.0 * float((answers == self._labels).mean())


def _values(processor: StreamProcessor) -> Tensor:
    """All means and variances in one row."""
    moments = processor.statistics().values()
    return torch.cat([torch.cat([one.mean, one.var]) for one in moments])


def _middle(scenario: Scenario, name: str) -> int:
    """Batches of the stream up to the middle of a domain."""
    batches = 0
    for domain in scenario.domains:
        assert domain.samples is not None
        own = -(-domain.samples // scenario.batch_size)
        if domain.name == name:
            return batches + own // 2
        batches += own
    raise ConfigurationError(f"The scenario has no domain `{name}`.")


def _probe(scenario: Scenario, data: LabelledData) -> tuple[Tensor, NDArray[np.int64]]:
    """Frames as in the domain of the covered lens, drawn apart from the stream."""
    rng = np.random.default_rng(np.random.SeedSequence([scenario.seed, len(scenario.domains)]))
    chosen = rng.permutation(len(data))[:_PROBE_FRAMES]
    domain = next(domain for domain in scenario.domains if domain.name == COVERED_IN)
    frames = corrupt(data.x[chosen], domain.corruption, severity=domain.severities[0], rng=rng)
    return normalize(frames), data.y[chosen]
