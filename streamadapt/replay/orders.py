"""Orders in which frames come: shuffled, class-correlated, with another mix of classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def class_correlated_order(
    labels: Indices, *, alpha: float, rng: np.random.Generator, groups: int | None = None
) -> Indices:
    """An order in which neighbours tend to share their class.

    Time is cut into as many slots as there are classes. Each class spreads its samples over the
    slots with proportions from a symmetric Dirichlet(`alpha`); inside a slot the classes follow one
    another in random order, each in one run. The smaller `alpha`, the fewer slots a class is in.

    Args:
        labels: int64 `[N]`.
        alpha: concentration, above 0.
        rng: source of randomness; it is advanced.
        groups: order by so many groups of neighbouring classes instead of by class.

    Returns:
        int64 `[N]`, a permutation: places in `labels`, in the order to show them.

    Reference:
        Gong et al. 2022, "NOTE: Robust Continual Test-time Adaptation Against Temporal
        Correlation", arXiv 2208.05117, which draws such streams. Here slots are not balanced.
    """
    classes, of_sample = np.unique(labels, return_inverse=True)
    if groups is not None:
        of_sample = of_sample * min(groups, len(classes)) // len(classes)
        classes = np.unique(of_sample)
    count = len(classes)
    slot = np.empty(len(labels), dtype=np.int64)
    for index in range(count):
        members = np.flatnonzero(of_sample == index)
        proportions = rng.dirichlet(np.full(count, alpha))
        edges = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        slot[members] = np.searchsorted(edges, np.arange(len(members)), side="right")
    place_in_slot = rng.permuted(np.tile(np.arange(count), (count, 1)), axis=1)  # [slot, class]
    return np.lexsort((place_in_slot[slot, of_sample], slot)).astype(np.int64)


def permutations(pool: Indices, *, count: int, rng: np.random.Generator) -> Indices:
    """The first `count` of random permutations of `pool`, one after the other.

    No sample comes back before all have been shown.
    """
    passes = -(-count // len(pool))
    drawn: Indices = np.concatenate([rng.permutation(pool) for _ in range(passes)])
    return drawn[:count]


def long_tailed(
    pool: Indices, labels: Indices, *, count: int, ratio: float, rng: np.random.Generator
) -> Indices:
    """`count` samples in which the most frequent class is `ratio` times the rarest, shuffled.

    Weights fall geometrically over the classes, which come in random order; counts are rounded by
    largest remainder. A class that has too few samples shows them again.

    Args:
        pool: int64 `[P]`, sample numbers to choose from.
        labels: int64, label of every sample number.
        count: how many to draw.
        ratio: 1 and above.
        rng: source of randomness; it is advanced.
    """
    classes = rng.permutation(np.unique(labels[pool]))
    weights = ratio ** (-np.arange(len(classes)) / max(len(classes) - 1, 1))
    shares = count * weights / weights.sum()
    counts = np.floor(shares).astype(np.int64)
    remainder = np.argsort(counts - shares, kind="stable")[: count - int(counts.sum())]
    counts[remainder] += 1
    chosen = [
        permutations(pool[labels[pool] == one], count=int(number), rng=rng)
        for one, number in zip(classes, counts, strict=True)
        if number
    ]
    return rng.permutation(np.concatenate(chosen))
