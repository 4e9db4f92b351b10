"""What a replay measured, as a value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay import scores
from streamadapt.replay.bootstrap import Interval, Pair, paired_interval
from streamadapt.replay.scores import Reliability as Reliability
from streamadapt.replay.spans import DomainSpan as DomainSpan

RESULT_FILE = "result.json"


@dataclass(frozen=True, repr=False, eq=False)
class PolicySeries:
    """What one policy did.

    Attributes:
        name: as in the scenario.
        description: what it is, in words.
        oracle: it saw each domain's frames before it had to answer them: a bound, not a rival.
        correct: bool `[frames]`, whether the answer was the label; False where there is no label.
        confidence: per batch, mean of the largest softmax; NaN where scores were not finite.
        diversity: per batch, effective number of classes predicted over the last 128 frames.
        reliability: confidence beside accuracy.
        distance: per batch, distance of the statistics from the source's, mean over the layers;
            None where not measured.
        layer_distance: the same by layer, after the batches in `layer_batches`.
        layer_batches: numbers of batches, from 0.
        adapted: per batch; False where it came while the policy was busy, and was answered by the
            model as last adapted.
        latency_seconds: per batch, wall time of the answer, measured.
    """

    name: str
    description: str
    oracle: bool
    correct: NDArray[np.bool_]
    confidence: Sequence[float]
    diversity: Sequence[float]
    reliability: Reliability
    distance: Sequence[float | None]
    layer_distance: Mapping[str, Sequence[float]]
    layer_batches: Sequence[int]
    adapted: Sequence[bool]
    latency_seconds: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "correct", np.asarray(self.correct, dtype=bool))

    def __repr__(self) -> str:
        return (
            f"PolicySeries({self.name!r}, {self.description!r}, frames={len(self.correct)}, "
            f"batches={len(self.adapted)})"
        )


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


@dataclass(frozen=True, repr=False, eq=False)
class ReplayResult:
    """Everything a replay produced.

    Attributes:
        name: title of the scenario.
        configuration_hash: of the scenario.
        scenario: the scenario in plain values.
        data: what the images were: samples, height, width, classes, sha256.
        model: what the model was: class, sha256 of its weights and buffers.
        versions: of streamadapt, torch, numpy and python.
        domains: visits of domains, what is scored; in the order of the stream.
        batch_frames: frames of each batch.
        frame_domains: int `[frames]`, place in `domains` of the condition each frame really had.
        frame_streams: camera of each frame; None where there is only one.
        labelled: bool `[frames]`; a frame without a label counts in no error.
        policies: in the order of the scenario.
        events: by policy, then in the order in which they were seen.
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
    frame_domains: NDArray[np.int64]
    frame_streams: Sequence[str] | None
    labelled: NDArray[np.bool_]
    policies: Sequence[PolicySeries]
    events: Sequence[ReplayEvent] = field(default=())
    wall_seconds: float = float("nan")

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame_domains", np.asarray(self.frame_domains, dtype=np.int64))
        object.__setattr__(self, "labelled", np.asarray(self.labelled, dtype=bool))

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

    @property
    def scored_domains(self) -> NDArray[np.int64]:
        """`frame_domains`, with -1 where a frame has no label."""
        return np.where(self.labelled, self.frame_domains, -1)

    def error(self, policy: str) -> list[float]:
        """Error of `policy` in each of `domains`, 0 to 1; NaN where no frame has a label."""
        return scores.error_per_domain(
            self.policy(policy).correct, self.scored_domains, count=len(self.domains)
        )

    def mean_error(self, policy: str) -> float:
        """Mean of the error of `policy` over the domains that have labels, 0 to 1."""
        return scores.mean_error(self.error(policy))

    def expected_calibration_error(self, policy: str) -> float:
        """How far the confidence of `policy` is from how often it is right, 0 to 1."""
        return scores.expected_calibration_error(self.policy(policy).reliability)

    def latency_seconds(self, policy: str, q: float) -> float:
        """The `q`-quantile of the time that `policy` took for a batch."""
        return scores.quantile(self.policy(policy).latency_seconds, q)

    def pair(self, policy: str, against: str) -> Pair:
        """What `paired_interval` takes; several results make several seeds of one comparison."""
        return self.policy(policy).correct, self.policy(against).correct, self.scored_domains

    def interval(self, policy: str, against: str) -> Interval:
        """By how much the mean error of `policy` is above that of `against`, and 95 % around it."""
        return paired_interval([self.pair(policy, against)])

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings.

        All that was measured with a clock is under `durations`; the rest is the same, byte for
        byte, for the same seed, versions and machine.
        """
        # Imported here: the format is made of these classes.
        from streamadapt.replay.result_format import result_to_dict

        return result_to_dict(self)

    def to_json(self) -> str:
        """`to_dict` as text with sorted keys."""
        content = self.to_dict()
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ReplayResult:
        """The result that `to_dict` was called on.

        Raises:
            DataError: something else, another schema version, or a part that does not fit.
        """
        from streamadapt.replay.result_format import result_from_dict

        return result_from_dict(content)

    @classmethod
    def from_json(cls, text: str) -> ReplayResult:
        """The result that `to_json` was called on.

        Raises:
            DataError: not JSON, or not such a result.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise DataError(f"Not a replay result: not valid JSON ({error}).") from error
        return cls.from_dict(content)

    @classmethod
    def load(cls, path: str | Path) -> ReplayResult:
        """Read a result.

        Args:
            path: a JSON file, or a run directory that holds `result.json`.

        Raises:
            DataError: not there, not readable, or not a result; the message starts with the file.
        """
        path = Path(path)
        if path.is_dir():
            path = path / RESULT_FILE
            if not path.exists():
                raise DataError(
                    f"{path.parent}: no {RESULT_FILE} in it: the run has not finished. Start the "
                    "same replay again with this run directory, and it goes on where it stopped."
                )
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"{path}: cannot be read ({reason}).") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
