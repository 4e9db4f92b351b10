"""How sure a difference between two policies is: a paired block bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamadapt.errors import ConfigurationError

BLOCK_FRAMES = 64
_FEWEST_BLOCKS = 8
_DRAWS_AT_ONCE = 1 << 20  # block starts in memory together: bounds the memory, not the result

Pair = tuple[ArrayLike, ArrayLike, ArrayLike]
"""Right answers of one policy, of the other, and the domain of each frame (-1 leaves it out)."""


@dataclass(frozen=True)
class Interval:
    """An estimate and how far it may be off.

    Attributes:
        low: lower end.
        estimate: what was measured.
        high: upper end.
    """

    low: float
    estimate: float
    high: float


def paired_interval(
    pairs: Sequence[Pair],
    *,
    block_frames: int = BLOCK_FRAMES,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """By how much the mean error of one policy is above that of another, with its interval.

    Both answered the same frames, so frame `t` gives `d_t = wrong_t - wrong'_t`, and the estimate
    is the mean over seeds of the mean over domains of the mean of `d`. Neighbours are alike, and a
    policy carries its state from one to the next: so whole blocks of a domain's frames are drawn
    with replacement, at any start, the domain closed to a circle. Every domain of every seed is
    drawn anew by itself; the interval is between percentiles of the means drawn. A domain of fewer
    than eight blocks is cut into eight shorter ones: it would hardly vary otherwise.

    Args:
        pairs: one a seed: right answers of the policy and of its rival, bool `[frames]`, and int
            `[frames]` the domain of each, -1 for one that does not count.
        block_frames: length of a block, at least 1.
        draws: how often everything is drawn, at least 1.
        level: share of the draws inside the interval, between 0 and 1.
        seed: of the draws.

    Returns:
        Points of error, 0 to 1; below zero the policy is better than its rival. All NaN where no
        frame counts.

    Raises:
        ConfigurationError: lengths that do not fit, or a number out of range.

    >>> right, wrong = np.ones(500, bool), np.zeros(500, bool)
    >>> paired_interval([(right, wrong, np.zeros(500, int))]).estimate
    -1.0

    Reference:
        Politis and Romano 1992, "A circular block-resampling procedure for stationary data", in
        Exploring the Limits of Bootstrap; Künsch 1989, "The jackknife and the bootstrap for general
        stationary observations", Annals of Statistics 17.
    """
    if min(block_frames, draws) < 1 or not 0 < level < 1:
        raise ConfigurationError(
            "`block_frames` and `draws` must be at least 1 and `level` between 0 and 1, got "
            f"{block_frames}, {draws} and {level}."
        )
    rng = np.random.default_rng(seed)
    estimates, drawn = [], []
    for pair in pairs:
        domains = _differences(pair)
        if domains:
            estimates.append(np.mean([one.mean() for one in domains]))
            means = [_resampled_means(one, block_frames, draws, rng) for one in domains]
            drawn.append(np.mean(means, axis=0))
    if not drawn:
        return Interval(float("nan"), float("nan"), float("nan"))
    tail = (1 - level) / 2
    low, high = np.quantile(np.mean(drawn, axis=0), [tail, 1 - tail])
    return Interval(float(low), float(np.mean(estimates)), float(high))


def _differences(pair: Pair) -> list[NDArray[np.int64]]:
    """`d` of every domain that has frames, in the order of the stream."""
    right, rival, domain = (np.asarray(one) for one in pair)
    if not right.shape == rival.shape == domain.shape:
        raise ConfigurationError(
            "A pair must be about the same frames, got "
            f"{list(right.shape)}, {list(rival.shape)} and {list(domain.shape)}."
        )
    difference = rival.astype(np.int64) - right.astype(np.int64)
    return [difference[domain == one] for one in np.unique(domain) if one >= 0]


def _resampled_means(
    values: NDArray[np.int64], block_frames: int, draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of `draws` series made of random blocks of `values`."""
    frames = len(values)
    blocks = max(-(-frames // block_frames), min(frames, _FEWEST_BLOCKS))
    length = -(-frames // blocks)
    before = np.concatenate([[0], np.cumsum(np.concatenate([values, values[: length - 1]]))])
    sums = before[length:] - before[:-length]  # of the block that starts at each frame
    out = np.empty(draws)
    step = max(_DRAWS_AT_ONCE // blocks, 1)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        starts = rng.integers(frames, size=(count, blocks))
        out[start : start + count] = sums[starts].sum(axis=1)
    return out / (blocks * length)
