"""Average precision of detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike


def average_precision(
    found: Sequence[Mapping[str, ArrayLike]],
    truth: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    label: int,
    least_overlap: float = 0.5,
) -> float:
    """Area under the curve of precision over recall, of one class over all pictures.

    From the highest score down, a detection is right if the true box of its class that it overlaps
    most is overlapped by at least so much and was not found before. Precision at a recall is the
    best at that recall or a higher one, and the area is exact, as PASCAL VOC has it since 2010.

    Args:
        found: of each picture, `boxes` `[n, 4]`, `labels` and `scores` `[n]`.
        truth: of each picture, boxes `[m, 4]` and labels `[m]`.
        label: the class.
        least_overlap: intersection over union.

    Returns:
        0 to 1; nan where there is no box of the class.

    >>> truth = [([[0, 0, 10, 10]], [1])]
    >>> found = [{"boxes": [[0, 0, 9, 10]], "labels": [1], "scores": [0.7]}]
    >>> average_precision(found, truth, label=1)
    1.0
    """
    scores, right, total = [], [], 0
    for one, (boxes, labels) in zip(found, truth, strict=True):
        wanted = np.asarray(boxes, np.float64).reshape(-1, 4)[np.asarray(labels) == label]
        total += len(wanted)
        own = np.asarray(one["labels"]) == label
        given = np.asarray(one["boxes"], np.float64).reshape(-1, 4)[own]
        score = np.asarray(one["scores"], np.float64)[own]
        order = np.argsort(-score, kind="stable")
        scores.append(score[order])
        right.append(_right(given[order], wanted, least_overlap))
    if not total:
        return float("nan")
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits = np.concatenate(right)[order].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], hits / total])
    return float((np.diff(recall) * precision).sum())


def mean_average_precision(
    found: Sequence[Mapping[str, ArrayLike]],
    truth: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    labels: Sequence[int],
    least_overlap: float = 0.5,
) -> float:
    """Mean of `average_precision` over the classes that there are boxes of."""
    each = [
        average_precision(found, truth, label=label, least_overlap=least_overlap)
        for label in labels
    ]
    return float(np.nanmean(each))


def _right(given, wanted, least_overlap: float):
    """Which of a picture's boxes, the best first, are right."""
    right = np.zeros(len(given), bool)
    if not len(wanted):
        return right
    taken = np.zeros(len(wanted), bool)
    for k, box in enumerate(given):
        corner, opposite = np.maximum(box[:2], wanted[:, :2]), np.minimum(box[2:], wanted[:, 2:])
        both = np.clip(opposite - corner, 0, None).prod(1)
        areas = (wanted[:, 2:] - wanted[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
        overlap = both / (areas - both)
        best = int(overlap.argmax())
        if overlap[best] >= least_overlap and not taken[best]:
            right[k] = taken[best] = True
    return right
