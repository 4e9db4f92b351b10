"""The report in one sentence, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from streamadapt.replay.report.forest import verdict
from streamadapt.replay.report.markup import listed, percent, points
from streamadapt.replay.report.pool import Pool, Rank

_COLUMNS = (
    "scenario",
    "configuration",
    "seed",
    "policy",
    "oracle",
    "domain",
    "visit",
    "camera",
    "frames",
    "labelled",
    "wrong",
    "error",
)


def headline(one: Pool) -> str:
    """Which policy is best, by how much and how sure that is, and which ones hurt."""
    base = one.rank(one.baseline)
    rivals = [rank for rank in one.rivals if isfinite(rank.error)]
    if not rivals:
        return f"{base.name}: mean error {percent(base.error)}."
    best = min(rivals, key=lambda rank: (rank.error, rank.name))
    worse = [rank.name for rank in rivals if _verdict(rank) == "worse"]
    outcome = _verdict(best)
    if outcome == "better":
        text = (
            f"{best.name} has the lowest mean error, {percent(best.error)}: {_sure(best)} less "
            f"than {base.name}, which has {percent(base.error)}."
        )
    elif outcome == "even":
        text = (
            f"Nothing is surely better than {base.name}, {percent(base.error)}. The lowest mean "
            f"error is {best.name}'s, {percent(best.error)}, {_sure(best)} of difference."
        )
    else:
        text = f"{base.name} is best, {percent(base.error)}: every policy hurts here."
    if worse and outcome != "worse":
        text += f" Worse than {base.name}: {listed(worse)}."
    return text


def _verdict(rank: Rank) -> str:
    return "even" if rank.gain is None else verdict(rank.gain)


def _sure(rank: Rank) -> str:
    if rank.gain is None:
        return ""
    low, high = sorted((-rank.gain.high, -rank.gain.low))
    signed = _verdict(rank) == "even"
    ends = [points(value) if signed else f"{100 * value:.1f}" for value in (low, high)]
    middle = points(-rank.gain.estimate) if signed else f"{-100 * rank.gain.estimate:.1f}"
    return f"{middle} points (95 %: {ends[0]} to {ends[1]})"


def to_dict(pools: Sequence[Pool]) -> dict[str, Any]:
    """Plain values of everything the tables show; a number that is not known is None."""
    return {
        "schema_version": 1,
        "kind": "streamadapt.report",
        "scenarios": [_scenario(one) for one in pools],
    }


def _scenario(one: Pool) -> dict[str, Any]:
    return {
        "name": one.first.name,
        "configuration_hashes": [result.configuration_hash for result in one.results],
        "seeds": list(one.seeds),
        "baseline": one.baseline,
        "headline": headline(one),
        "policies": [
            {
                "name": rank.name,
                "oracle": rank.oracle,
                "error": _plain(rank.error),
                "difference": None
                if rank.gain is None
                else {key: _plain(value) for key, value in asdict(rank.gain).items()},
                "ece": _plain(rank.ece),
                "domains": {domain: _plain(one.error(rank.name, domain)) for domain in one.domains},
                "durations": {
                    "cost": _plain(rank.cost),
                    "p50_seconds": _plain(rank.p50),
                    "p99_seconds": _plain(rank.p99),
                },
                "too_late": rank.too_late,
            }
            for rank in one.ranks
        ],
    }


def to_csv(pools: Sequence[Pool]) -> str:
    """A line for every seed, policy and visit of a domain."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in pools:
        for seed, result in zip(one.seeds, one.results, strict=True):
            places = result.scored_domains
            for series in result.policies:
                for index, span in enumerate(result.domains):
                    inside = places == index
                    labelled = int(inside.sum())
                    wrong = labelled - int(series.correct[inside].sum())
                    writer.writerow(
                        [
                            result.name,
                            result.configuration_hash,
                            seed,
                            series.name,
                            int(series.oracle),
                            span.name,
                            span.visit,
                            span.camera or "",
                            span.frames,
                            labelled,
                            wrong,
                            repr(wrong / labelled) if labelled else "",
                        ]
                    )
    return out.getvalue()


def _plain(value: float) -> float | None:
    return value if isfinite(value) else None
