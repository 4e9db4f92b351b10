"""The numbers of a replay: error, quantiles, run lengths, rolling accuracy. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def error_rate(correct: Sequence[int], frames: Sequence[int]) -> float:
    """Share of frames answered wrongly, 0 to 1, over batches of `frames` with `correct` right.

    >>> error_rate([3, 1], [4, 4])
    0.5
    """
    total = sum(frames)
    return 1 - sum(correct) / total if total else float("nan")


def error_per_domain(
    correct: Sequence[int], frames: Sequence[int], domains: Sequence[int]
) -> list[float]:
    """Error of each domain, in the order of their indices.

    Args:
        correct: right answers per batch.
        frames: frames per batch.
        domains: domain index per batch, not decreasing, every index from 0 present.
    """
    return [
        error_rate(
            [c for c, d in zip(correct, domains, strict=True) if d == domain],
            [n for n, d in zip(frames, domains, strict=True) if d == domain],
        )
        for domain in range(max(domains, default=-1) + 1)
    ]


def mean_error(per_domain: Sequence[float]) -> float:
    """Mean over domains, each counting the same however many frames it has (the field's habit)."""
    return sum(per_domain) / len(per_domain) if per_domain else float("nan")


def quantile(values: Sequence[float], q: float) -> float:
    """The `q`-quantile, 0 to 1, interpolated linearly; NaN of nothing."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), q)) if values else float("nan")


def run_lengths(labels: ArrayLike) -> NDArray[np.int64]:
    """Lengths of the runs of equal neighbours.

    >>> run_lengths([7, 7, 7, 2, 7]).tolist()
    [3, 1, 1]
    """
    values = np.asarray(labels)
    if not values.size:
        return np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    return np.diff(np.append(starts, values.size)).astype(np.int64)


def rolling_accuracy(
    correct: Sequence[int], frames: Sequence[int], domains: Sequence[int], *, window_frames: int
) -> list[float]:
    """Accuracy around each batch, over neighbours of the same domain only.

    Each value pools the batches within half a window before and after, so that a change of
    domain shows as the step that it is.

    Args:
        correct: right answers per batch.
        frames: frames per batch.
        domains: domain index per batch.
        window_frames: width of the window; at least the batch itself is counted.
    """
    n = np.asarray(frames, dtype=np.float64)
    right = np.concatenate([[0.0], np.cumsum(np.asarray(correct, dtype=np.float64))])
    seen = np.concatenate([[0.0], np.cumsum(n)])
    domain = np.asarray(domains)
    middle = (seen[:-1] + seen[1:]) / 2
    low = np.searchsorted(middle, middle - window_frames / 2, side="left")
    high = np.searchsorted(middle, middle + window_frames / 2, side="right")
    low = np.maximum(low, np.searchsorted(domain, domain, side="left"))
    high = np.minimum(high, np.searchsorted(domain, domain, side="right"))
    return [float(value) for value in (right[high] - right[low]) / (seen[high] - seen[low])]
