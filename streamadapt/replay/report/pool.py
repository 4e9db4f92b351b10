"""Several seeds of one scenario, looked at as one result: what the report says is computed here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.bootstrap import Interval, paired_interval
from streamadapt.replay.result import PolicySeries, ReplayResult
from streamadapt.replay.scores import Reliability


def pool(results: Sequence[ReplayResult]) -> list[Pool]:
    """Group results by what they are a repetition of: the scenario without its seed.

    Raises:
        ConfigurationError: no result, or one seed of a scenario twice.
    """
    if not results:
        raise ConfigurationError("There is no result to report on. Give at least one run.")
    groups: dict[str, list[ReplayResult]] = {}
    for result in results:
        groups.setdefault(_kind(result), []).append(result)
    return [Pool(sorted(group, key=_seed)) for group in groups.values()]


def _kind(result: ReplayResult) -> str:
    scenario = {key: value for key, value in result.scenario.items() if key != "seed"}
    names = [series.name for series in result.policies]
    return json.dumps([result.name, scenario, names, result.model], sort_keys=True, default=str)


def _seed(result: ReplayResult) -> int:
    seed = result.scenario.get("seed", 0)
    if not isinstance(seed, int):
        raise DataError(f"{result.name!r}: the seed must be a whole number, got {seed!r}.")
    return seed


@dataclass(frozen=True)
class Rank:
    """One policy, over all seeds and domains.

    Attributes:
        name: as in the scenario.
        description: what it is, in words.
        oracle: whether it is a bound, not a rival.
        error: mean over seeds and domains, 0 to 1.
        gain: by how much its error is above the baseline's; None for the baseline itself.
        ece: expected calibration error, 0 to 1.
        cost: latency over the baseline's, medians; NaN where not measured.
        p50: median latency of a batch in seconds.
        p99: the same, 99th percentile.
        too_late: share of batches that came while it was busy, 0 to 1.
    """

    name: str
    description: str
    oracle: bool
    error: float
    gain: Interval | None
    ece: float
    cost: float
    p50: float
    p99: float
    too_late: float


class Pool:
    """Results that differ in their seed only.

    Args:
        results: at least one.

    Raises:
        ConfigurationError: two results of one seed.
    """

    def __init__(self, results: Sequence[ReplayResult]) -> None:
        self.results = tuple(results)
        seeds = [_seed(result) for result in results]
        if len(set(seeds)) < len(seeds):
            raise ConfigurationError(
                f"Two runs of {self.first.name!r} have the same seed, {_twice(seeds)}: they would "
                "count as more evidence than they are. Give each run once."
            )

    @property
    def first(self) -> ReplayResult:
        """The one of the lowest seed; what cannot be averaged is shown of it."""
        return self.results[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the results, rising."""
        return tuple(_seed(result) for result in self.results)

    @property
    def names(self) -> list[str]:
        """The policies."""
        return [series.name for series in self.first.policies]

    @cached_property
    def baseline(self) -> str:
        """The frozen model, or whatever comes first."""
        specs: Sequence[Any] = self.first.scenario.get("policies") or ()
        frozen = [one.get("name") for one in specs if one.get("kind") == "frozen"]
        candidates = [*frozen, "frozen", self.names[0]]
        return next(str(name) for name in candidates if name in self.names)

    @cached_property
    def domains(self) -> list[str]:
        """Names of the domains, in the order in which the first seed meets them."""
        return list(dict.fromkeys(span.name for span in self.first.domains))

    @cached_property
    def visits(self) -> int:
        """How often the stream comes to its most visited domain."""
        names = [span.name for span in self.first.domains]
        return max(names.count(name) for name in self.domains)

    def error(self, policy: str, domain: str | None = None) -> float:
        """Mean error over seeds and over the visits of `domain`, or of all; NaN without labels.

        Raises:
            ConfigurationError: there is no such policy or domain.
        """
        if domain is None:
            return _mean([result.mean_error(policy) for result in self.results])
        if domain not in self.domains:
            raise ConfigurationError(
                f"There is no domain {domain!r} in {self.first.name!r}. "
                f"Known: {', '.join(self.domains)}."
            )
        return _mean(
            [
                _mean([e for e, span in _visits(result, policy) if span == domain])
                for result in self.results
            ]
        )

    def interval(self, policy: str, against: str, domain: str | None = None) -> Interval:
        """By how much the error of `policy` is above that of `against`, and 95 % around it."""
        pairs = []
        for result in self.results:
            right, rival, places = result.pair(policy, against)
            if domain is not None:
                inside = [i for i, span in enumerate(result.domains) if span.name == domain]
                places = np.where(np.isin(places, inside), places, -1)
            pairs.append((right, rival, places))
        return paired_interval(pairs)

    def reliability(self, policy: str) -> Reliability:
        """Confidence and accuracy of all seeds in one set of bins."""
        bins = [result.policy(policy).reliability for result in self.results]
        frames = np.array([one.frames for one in bins], dtype=np.float64)
        total = frames.sum(axis=0)

        def mean(values: list[Sequence[float]]) -> list[float]:
            known = np.where(frames > 0, np.array(values, dtype=np.float64), 0.0)
            summed = (known * frames).sum(axis=0)
            means = np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0)
            return [float(one) for one in means]

        return Reliability(
            total.astype(np.int64).tolist(),
            mean([one.confidence for one in bins]),
            mean([one.accuracy for one in bins]),
        )

    def series(self, policy: str) -> list[PolicySeries]:
        """What the policy did, by seed."""
        return [result.policy(policy) for result in self.results]

    @cached_property
    def ranks(self) -> list[Rank]:
        """All policies, in the order of the scenario."""
        return [self._rank(series) for series in self.first.policies]

    def rank(self, policy: str) -> Rank:
        """One of `ranks`.

        Raises:
            ConfigurationError: there is no such policy.
        """
        self.first.policy(policy)
        return next(rank for rank in self.ranks if rank.name == policy)

    @property
    def rivals(self) -> list[Rank]:
        """All that compete with the baseline: neither it nor an oracle."""
        return [rank for rank in self.ranks if rank.gain is not None and not rank.oracle]

    def _rank(self, series: PolicySeries) -> Rank:
        name = series.name
        latency = self._latency(name, 0.5)
        base = self._latency(self.baseline, 0.5)
        return Rank(
            name=name,
            description=series.description,
            oracle=series.oracle,
            error=self.error(name),
            gain=None if name == self.baseline else self.interval(name, self.baseline),
            ece=_mean([result.expected_calibration_error(name) for result in self.results]),
            cost=latency / base if base > 0 else float("nan"),
            p50=latency,
            p99=self._latency(name, 0.99),
            too_late=_mean([1 - float(np.mean(one.adapted)) for one in self.series(name)]),
        )

    def _latency(self, policy: str, q: float) -> float:
        return _mean([result.latency_seconds(policy, q) for result in self.results])


def _visits(result: ReplayResult, policy: str) -> list[tuple[float, str]]:
    return [
        (error, span.name) for error, span in zip(result.error(policy), result.domains, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _twice(seeds: Sequence[int]) -> int:
    return next(seed for seed in seeds if seeds.count(seed) > 1)
