"""The stream of a scenario: which frames come, in which order, and how the camera spoils them.

Every random draw is tied to a place in the stream, never to how the stream is read: domain *k*
draws from `SeedSequence([seed, k, ...])`, and frames are corrupted in groups of 64 counted from the
start of their domain. So a frame is the same to the bit whatever the batch size, the other domains,
and however often it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import DataError
from streamadapt.replay.corruptions import SMALLEST_SIDE, corrupt
from streamadapt.replay.data import LabelledData
from streamadapt.replay.scenario import Scenario

GROUP_FRAMES = 64  # corrupted together; part of what a seed means, so never a parameter
_DRAW_SAMPLES, _DRAW_CORRUPTION = 0, 1


@dataclass(frozen=True, repr=False)
class Batch:
    """Neighbouring frames of one domain.

    Attributes:
        frames: uint8 `[B, H, W, 3]`, corrupted.
        labels: int64 `[B]`.
        domain_index: which of the scenario's domains.
        start_index: place of the first frame in the whole stream.
        ids: int64 `[B]`, which sample of the data each frame was made from.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]
    domain_index: int
    start_index: int
    ids: NDArray[np.int64]

    def __repr__(self) -> str:
        return (
            f"Batch(frames=uint8 {list(self.frames.shape)}, domain_index={self.domain_index}, "
            f"start_index={self.start_index})"
        )


class Stream:
    """Batches of a scenario, made on the way; may be iterated again and gives the same bits.

    A domain draws its samples without replacement; one that asks for more than there are goes
    through the data again in another order. A batch never spans two domains.

    Args:
        scenario: domains, order, seed and batch size.
        data: images already at their final size.

    Raises:
        DataError: images too small to be corrupted.
    """

    def __init__(self, scenario: Scenario, *, data: LabelledData) -> None:
        self.scenario = scenario
        self.data = data
        height, width = data.x.shape[1:3]
        if min(height, width) < SMALLEST_SIDE:
            raise DataError(
                f"The images have {height} x {width} pixels, at least {SMALLEST_SIDE} x "
                f"{SMALLEST_SIDE} are needed. Set `resize`."
            )
        self._ids = [self._order_of(index) for index in range(len(scenario.domains))]

    def __len__(self) -> int:
        """Number of batches."""
        size = self.scenario.batch_size
        return sum(-(-domain.samples // size) for domain in self.scenario.domains)

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self.scenario.domains)):
            yield from self.domain(index)

    def domain(self, index: int) -> Iterator[Batch]:
        """The batches of one domain."""
        size = self.scenario.batch_size
        ids = self._ids[index]
        first = sum(domain.samples for domain in self.scenario.domains[:index])
        kept = np.empty((0, *self.data.x.shape[1:]), dtype=np.uint8)
        groups = self._corrupted_groups(index)
        for start in range(0, len(ids), size):
            stop = min(start + size, len(ids))
            parts = [kept]
            while sum(map(len, parts)) < stop - start:
                parts.append(next(groups))
            ready = np.concatenate(parts)
            frames, kept = ready[: stop - start], ready[stop - start :]
            chosen = ids[start:stop]
            yield Batch(frames, self.data.y[chosen], index, first + start, chosen)

    def labels(self, index: int) -> NDArray[np.int64]:
        """Labels of one domain, in the order of its frames."""
        return self.data.y[self._ids[index]]

    def _corrupted_groups(self, index: int) -> Iterator[NDArray[np.uint8]]:
        domain = self.scenario.domains[index]
        ids = self._ids[index]
        for group, start in enumerate(range(0, len(ids), GROUP_FRAMES)):
            frames = self.data.x[ids[start : start + GROUP_FRAMES]]
            rng = self._rng(index, _DRAW_CORRUPTION, group)
            yield corrupt(frames, domain.corruption, severity=domain.severity, rng=rng)

    def _order_of(self, index: int) -> NDArray[np.int64]:
        rng = self._rng(index, _DRAW_SAMPLES)
        samples = self.scenario.domains[index].samples
        passes = -(-samples // len(self.data))
        drawn = np.concatenate([rng.permutation(len(self.data)) for _ in range(passes)])
        chosen = drawn[:samples].astype(np.int64)
        if self.scenario.order == "dirichlet":
            alpha = self.scenario.dirichlet_alpha
            return chosen[class_correlated_order(self.data.y[chosen], alpha=alpha, rng=rng)]
        return chosen

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.scenario.seed, *place]))


def class_correlated_order(
    labels: NDArray[np.int64], *, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """An order in which neighbours tend to share their class.

    Time is cut into as many slots as there are classes. Each class spreads its samples over the
    slots with proportions from a symmetric Dirichlet(`alpha`); inside a slot the classes follow one
    another in random order, each in one run. The smaller `alpha`, the fewer slots a class is in.

    Args:
        labels: int64 `[N]`.
        alpha: concentration, above 0.
        rng: source of randomness; it is advanced.

    Returns:
        int64 `[N]`, a permutation: places in `labels`, in the order to show them.

    Reference:
        Gong et al. 2022, "NOTE: Robust Continual Test-time Adaptation Against Temporal
        Correlation", arXiv 2208.05117, which draws such streams. Here slots are not balanced.
    """
    classes, of_sample = np.unique(labels, return_inverse=True)
    count = len(classes)
    slot = np.empty(len(labels), dtype=np.int64)
    for index in range(count):
        members = np.flatnonzero(of_sample == index)
        proportions = rng.dirichlet(np.full(count, alpha))
        edges = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        slot[members] = np.searchsorted(edges, np.arange(len(members)), side="right")
    place_in_slot = rng.permuted(np.tile(np.arange(count), (count, 1)), axis=1)  # [slot, class]
    return np.lexsort((place_in_slot[slot, of_sample], slot)).astype(np.int64)
