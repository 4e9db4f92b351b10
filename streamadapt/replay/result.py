"""What a replay measured, as a value, and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from streamadapt.errors import ConfigurationError
from streamadapt.replay import scores

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class DomainSpan:
    """Where a domain lies in the stream.

    Attributes:
        name: as in the scenario.
        corruption: as in the scenario.
        severity: 1 to 5, or 0 for a domain that is not corrupted.
        first_frame: place of its first frame in the stream.
        frames: its length in frames.
        first_batch: place of its first batch.
        batches: its length in batches.
        mean_run_length: frames in a row of one class, on average; says how correlated it is.
    """

    name: str
    corruption: str
    severity: int
    first_frame: int
    frames: int
    first_batch: int
    batches: int
    mean_run_length: float


@dataclass(frozen=True, repr=False)
class PolicySeries:
    """What one policy did, batch by batch.

    Attributes:
        name: as in the scenario.
        description: what it is, in words.
        oracle: it saw each domain's frames before it had to answer them: a bound, not a rival.
        correct: right answers.
        distance: distance from the source statistics after the batch; None where not known.
        latency_seconds: wall time of the answer, measured.
    """

    name: str
    description: str
    oracle: bool
    correct: Sequence[int]
    distance: Sequence[float | None]
    latency_seconds: Sequence[float]

    def __repr__(self) -> str:
        return f"PolicySeries({self.name!r}, {self.description!r}, batches={len(self.correct)})"


@dataclass(frozen=True)
class ReplayEvent:
    """Something that a policy reported.

    Attributes:
        batch: after which batch, from 0.
        policy: name of the policy.
        kind: class name of the event.
        fields: its values, plain, without measured durations.
    """

    batch: int
    policy: str
    kind: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class ReplayResult:
    """Everything a replay produced.

    Attributes:
        name: title of the scenario.
        configuration_hash: of the scenario.
        scenario: the scenario in plain values.
        data: what the images were: samples, height, width, classes, sha256.
        model: what the model was: class, sha256 of its weights and buffers.
        versions: of streamadapt, torch, numpy and python.
        domains: in the order of the stream.
        batch_frames: frames of each batch.
        batch_domains: domain index of each batch.
        policies: in the order of the scenario.
        events: in the order in which they were seen.
        wall_seconds: the whole run.
    """

    name: str
    configuration_hash: str
    scenario: Mapping[str, Any]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    versions: Mapping[str, str]
    domains: Sequence[DomainSpan]
    batch_frames: Sequence[int]
    batch_domains: Sequence[int]
    policies: Sequence[PolicySeries]
    events: Sequence[ReplayEvent] = ()
    wall_seconds: float = float("nan")

    def __repr__(self) -> str:
        errors = ", ".join(f"{p.name} {100 * self.mean_error(p.name):.1f} %" for p in self.policies)
        return f"ReplayResult({self.name!r}, frames={sum(self.batch_frames)}, error: {errors})"

    def policy(self, name: str) -> PolicySeries:
        """The series of one policy."""
        for series in self.policies:
            if series.name == name:
                return series
        known = ", ".join(series.name for series in self.policies)
        raise ConfigurationError(f"There is no policy `{name}` in this result. Known: {known}.")

    def error(self, policy: str) -> list[float]:
        """Error of `policy` in each domain, 0 to 1."""
        correct = self.policy(policy).correct
        return scores.error_per_domain(correct, self.batch_frames, self.batch_domains)

    def mean_error(self, policy: str) -> float:
        """Mean over the domains of the error of `policy`, 0 to 1."""
        return scores.mean_error(self.error(policy))

    def latency_seconds(self, policy: str, q: float) -> float:
        """The `q`-quantile of the time that `policy` took for a batch."""
        return scores.quantile(self.policy(policy).latency_seconds, q)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings.

        All that was measured with a clock is under `durations`; the rest is the same, byte for
        byte, for the same seed, versions, machine and number of threads.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "streamadapt.replay",
            "name": self.name,
            "configuration_hash": self.configuration_hash,
            "scenario": dict(self.scenario),
            "data": dict(self.data),
            "model": dict(self.model),
            "versions": dict(self.versions),
            "domains": [asdict(domain) for domain in self.domains],
            "batches": {"frames": list(self.batch_frames), "domain": list(self.batch_domains)},
            "policies": [
                {
                    "name": series.name,
                    "description": series.description,
                    "oracle": series.oracle,
                    "error": self.error(series.name),
                    "mean_error": self.mean_error(series.name),
                    "correct": list(series.correct),
                    "distance": [_finite_or_none(value) for value in series.distance],
                }
                for series in self.policies
            ],
            "events": [asdict(event) for event in self.events],
            "durations": {
                "wall_seconds": _finite_or_none(self.wall_seconds),
                "latency_seconds": {
                    series.name: {
                        "p50": self.latency_seconds(series.name, 0.5),
                        "p99": self.latency_seconds(series.name, 0.99),
                        "batches": list(series.latency_seconds),
                    }
                    for series in self.policies
                },
            },
        }

    def to_json(self) -> str:
        """`to_dict` as text with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True, indent=1, allow_nan=False) + "\n"


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
