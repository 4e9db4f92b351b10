"""Least squares of a value on the ones before it, of many series at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST_DEVIATION = 1e-9  # of a constant score, relative to its size
_LEAST_REVERSION = 0.01  # of a deviation from the mean that is not carried on
_BLOCK = 64  # steps that are averaged at a time


@dataclass(frozen=True, eq=False)
class Coefficients:
    """Of as many series; see `drift.AutoRegression`."""

    deviation: Array
    phi: Array
    innovation: Array
    level: Array


class LaggedMoments:
    """What models of as many series are fitted from, collected a slice at a time.

    Args:
        order: the largest, of the models.
        memory: of their level; 1: they have none.
    """

    def __init__(self, order: int, memory: float) -> None:
        self._order, self._memory = order, memory
        self._steps = 0

    def add(self, deviations: Array) -> None:
        """The next deviations from what is about the mean, `[steps, series]`.

        Sums of products of values far from nought would cancel.
        """
        order, series = self._order, deviations.shape[1]
        if not self._steps:
            self._first = np.zeros((0, series))
            self._last = deviations[:0]
            self._sum = np.zeros(series)
            self._products = np.zeros((order + 1, series))
            self._average = np.zeros(series, deviations.dtype)
            self._level_sum, self._level_products = np.zeros(series), np.zeros((order + 2, series))
        new = len(deviations)
        whole = np.concatenate([self._last, deviations])

        def lagged(lag: int) -> tuple[Array, Array]:
            """Values of this slice, and those before them that there are."""
            now = whole[max(len(whole) - new, lag) :]
            return now, whole[len(whole) - len(now) - lag : len(whole) - lag]

        for lag in range(order + 1):
            self._products[lag] += np.einsum("ts,ts->s", *lagged(lag))
        if self._memory > 1.0:
            after = levels(deviations, self._average, self._memory)
            level = np.concatenate([self._average[None], after[:-1]])  # before each of the values
            self._average = after[-1]
            self._level_sum += level.sum(axis=0)
            for lag in range(order + 1):
                _, before = lagged(lag)
                self._level_products[lag] += np.einsum(
                    "ts,ts->s", level[new - len(before) :], before
                )
            self._level_products[-1] += np.einsum("ts,ts->s", level, level)
        self._sum += deviations.sum(axis=0)
        self._first = np.concatenate([self._first, deviations[: order - len(self._first)]])
        self._last = whole[len(whole) - min(order, len(whole)) :]
        self._steps += new

    def coefficients(self, order: int, about: Array) -> Coefficients:
        """Of models of an order up to the largest.

        Args:
            order: so many lags.
            about: what the deviations are from; what is constant is so beside it.
        """
        steps, mean = self._steps, self.mean
        covariance = np.empty((len(mean), order + 1))
        for lag in range(order + 1):
            late = self._sum - self._first[:lag].sum(axis=0)
            early = self._sum - self._last[len(self._last) - lag :].sum(axis=0)
            total = self._products[lag] - mean * (late + early) + (steps - lag) * mean**2
            covariance[:, lag] = total / steps
        deviation = np.sqrt(np.maximum(covariance[:, 0], 0.0))
        deviation = np.maximum(deviation, LEAST_DEVIATION * (1.0 + np.abs(about + mean)))
        covariance[:, 0] = deviation**2
        places = np.arange(order)
        matrix, wanted = covariance[:, np.abs(places[:, None] - places)], covariance[:, 1:]
        if self._memory > 1.0:
            average = self._level_sum / steps
            products = self._level_products / steps
            across = (products[: order + 1] - average * mean).T
            own = np.maximum(products[-1] - average**2, (LEAST_DEVIATION * deviation) ** 2)
            matrix = np.block(
                [[matrix, across[:, 1:, None]], [across[:, None, 1:], own[:, None, None]]]
            )
            wanted = np.concatenate([wanted, across[:, :1]], axis=1)
        solved = np.linalg.solve(matrix, wanted[..., None])[..., 0].astype(np.float64)
        phi, level = solved[:, :order], np.zeros(len(mean))
        if self._memory > 1.0:
            most = np.maximum(1.0 - _LEAST_REVERSION - phi.sum(axis=1), 0.0)
            level = np.minimum(np.maximum(solved[:, order], 0.0), most)
            solved[:, order] = level
        explained = 2.0 * (solved * wanted).sum(axis=1)
        explained -= np.einsum("si,sij,sj->s", solved, matrix, solved)
        variance = np.maximum(covariance[:, 0] - explained, (LEAST_DEVIATION * deviation) ** 2)
        return Coefficients(deviation, phi, np.sqrt(variance), level)

    @property
    def mean(self) -> Array:
        """Of the deviations, `[series]`."""
        return self._sum / self._steps


def levels(deviations: Array, before: Array, memory: float | Array) -> Array:
    """Exponential averages with each of the deviations, `[steps, series]`.

    Args:
        deviations: `[steps, series]`.
        before: the averages before the first, `[series]`.
        memory: steps that they look back; a number, or one a series.
    """
    forgets = np.asarray(1.0 / np.asarray(memory), dtype=deviations.dtype)
    out = np.empty_like(deviations)
    if len(deviations) < 4 or forgets.ndim:
        for now, value in zip(out, deviations, strict=True):
            before = np.add(before, forgets * (value - before), out=now)
        return out
    block = min(len(deviations), _BLOCK)
    powers = (1.0 - float(forgets)) ** np.arange(block + 1)
    ages = np.arange(block)[:, None] - np.arange(block)
    weights = np.where(ages >= 0, powers[np.maximum(ages, 0)] * float(forgets), 0.0)
    weights, powers = weights.astype(deviations.dtype), powers.astype(deviations.dtype)
    for first in range(0, len(deviations), block):
        own = deviations[first : first + block]
        size = len(own)
        now = out[first : first + size]
        np.matmul(weights[:size, :size], own, out=now)
        now += powers[1 : size + 1, None] * before
        before = now[-1]
    return out
