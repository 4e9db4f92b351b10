"""The numbers of a replay: error, calibration, diversity, quantiles, runs. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RELIABILITY_BINS = 15
DIVERSITY_FRAMES = 128


def error_rate(correct: ArrayLike) -> float:
    """Share of frames answered wrongly, 0 to 1; NaN of none.

    >>> error_rate([True, False, True, True])
    0.25
    """
    right = np.asarray(correct, dtype=bool)
    return float(1 - right.mean()) if right.size else float("nan")


def error_per_domain(correct: ArrayLike, domains: ArrayLike, *, count: int) -> list[float]:
    """Error of each of `count` domains; NaN where a domain has no frame that counts.

    Args:
        correct: bool `[frames]`.
        domains: int `[frames]`, the domain of each frame; -1 leaves the frame out.
        count: how many domains there are.
    """
    domain = np.asarray(domains, dtype=np.int64)
    counts = domain >= 0
    total = np.bincount(domain[counts], minlength=count)
    wrong = np.bincount(domain[counts & ~np.asarray(correct, dtype=bool)], minlength=count)
    return [float(w / n) if n else float("nan") for w, n in zip(wrong, total, strict=True)]


def mean_error(per_domain: Sequence[float]) -> float:
    """Mean over domains, each counting the same however many frames it has (the field's habit).

    Domains without an error (NaN) do not count.
    """
    known = [error for error in per_domain if error == error]
    return sum(known) / len(known) if known else float("nan")


def quantile(values: Sequence[float], q: float) -> float:
    """The `q`-quantile, 0 to 1, interpolated linearly; NaN of nothing."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), q)) if values else float("nan")


@dataclass(frozen=True)
class Reliability:
    """How often answers of a given confidence are right.

    Fifteen bins of equal width; bin `i` holds confidences above `i/15` and up to `(i+1)/15`.

    Attributes:
        frames: labelled frames in each bin.
        confidence: their mean confidence; NaN in an empty bin.
        accuracy: share of them answered rightly; NaN in an empty bin.
    """

    frames: Sequence[int]
    confidence: Sequence[float]
    accuracy: Sequence[float]


def reliability(confidence: ArrayLike, correct: ArrayLike) -> Reliability:
    """Sort answers into bins by their confidence.

    Args:
        confidence: float `[frames]`, largest softmax; one that is not finite is left out.
        correct: bool `[frames]`.
    """
    sure = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=bool)
    finite = np.isfinite(sure)
    sure, right = sure[finite], right[finite]
    place = np.clip(np.ceil(sure * RELIABILITY_BINS).astype(np.int64) - 1, 0, RELIABILITY_BINS - 1)
    frames = np.bincount(place, minlength=RELIABILITY_BINS)
    sums = (
        np.bincount(place, weights=sure, minlength=RELIABILITY_BINS),
        np.bincount(place, weights=right, minlength=RELIABILITY_BINS),
    )
    means = [
        np.divide(one, frames, out=np.full(one.shape, np.nan), where=frames > 0) for one in sums
    ]
    return Reliability(frames.tolist(), means[0].tolist(), means[1].tolist())


def expected_calibration_error(bins: Reliability) -> float:
    """Mean distance of confidence from accuracy, `sum_i n_i/N |acc_i - conf_i|`; NaN of nothing.

    Reference:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, with its 15
        bins.
    """
    frames = np.asarray(bins.frames, dtype=np.float64)
    if not frames.sum():
        return float("nan")
    gap = np.abs(np.asarray(bins.accuracy) - np.asarray(bins.confidence))
    return float((frames * np.where(frames > 0, gap, 0.0)).sum() / frames.sum())


def diversity(probabilities: ArrayLike) -> float:
    """Effective number of classes that are predicted: `exp(H(p))`, `p` the mean over the frames.

    1 when every answer is the same sure class, as many as there are classes when they are even. A
    collapsing model goes to 1, whatever its frames show.

    Args:
        probabilities: float `[frames, classes]`, each row sums to one.

    >>> round(diversity(np.eye(4)), 6)
    4.0
    """
    p = np.asarray(probabilities, dtype=np.float64).mean(axis=0)
    return float(np.exp(-np.sum(p * np.log(np.where(p > 0, p, 1.0)))))


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
        domains: domain index per batch, never falling.
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
    count = seen[high] - seen[low]
    share = np.divide(
        right[high] - right[low], count, out=np.full_like(count, np.nan), where=count > 0
    )
    return [float(value) for value in share]
