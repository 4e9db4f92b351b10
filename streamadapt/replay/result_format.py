"""A replay's result as JSON, schema version 2.

Frames are many and their values few, so they are packed: `correct` and `labelled` are bits in
base64 (`packing.pack_bits`), domains and cameras of the frames are run lengths (`packing.to_runs`).
A number that is not finite is null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from streamadapt.errors import DataError
from streamadapt.replay.packing import from_runs, pack_bits, to_runs, unpack_bits
from streamadapt.replay.result import PolicySeries, ReplayEvent, ReplayResult
from streamadapt.replay.scores import Reliability, expected_calibration_error, quantile
from streamadapt.replay.spans import DomainSpan

SCHEMA_VERSION = 2
KIND = "streamadapt.replay"


def result_to_dict(result: ReplayResult) -> dict[str, Any]:
    """Plain lists, numbers and strings; `durations` holds all that a clock measured."""
    streams = result.frame_streams
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "name": result.name,
        "configuration_hash": result.configuration_hash,
        "scenario": dict(result.scenario),
        "data": dict(result.data),
        "model": dict(result.model),
        "versions": dict(result.versions),
        "domains": [{**asdict(span), "severity": list(span.severity)} for span in result.domains],
        "batches": {"frames": list(result.batch_frames)},
        "frames": {
            "domain": [list(run) for run in to_runs(result.frame_domains.tolist())],
            "stream": None if streams is None else [list(run) for run in to_runs(streams)],
            "labelled": pack_bits(result.labelled),
        },
        "policies": [
            {
                **series_to_dict(series),
                "error": [finite_or_none(value) for value in result.error(series.name)],
                "mean_error": finite_or_none(result.mean_error(series.name)),
            }
            for series in result.policies
        ],
        "events": [asdict(event) for event in result.events],
        "durations": {
            "wall_seconds": finite_or_none(result.wall_seconds),
            "latency_seconds": {
                series.name: {
                    "p50": finite_or_none(quantile(series.latency_seconds, 0.5)),
                    "p99": finite_or_none(quantile(series.latency_seconds, 0.99)),
                    "batches": list(series.latency_seconds),
                }
                for series in result.policies
            },
        },
    }


def result_from_dict(content: Mapping[str, Any]) -> ReplayResult:
    """The result that `result_to_dict` was given.

    Raises:
        DataError: something else, another schema version, or a part that does not fit.
    """
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise DataError(f"Not a replay result: there is no `kind` of `{KIND}` in it.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"The replay result has schema version {content.get('schema_version')}, this version "
            f"of streamadapt reads {SCHEMA_VERSION}. Run the scenario again."
        )
    try:
        return _result(content)
    except (KeyError, TypeError, ValueError) as error:
        what = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"The replay result is damaged: {what}.") from error


def _result(content: Mapping[str, Any]) -> ReplayResult:
    batch_frames = [int(count) for count in content["batches"]["frames"]]
    frames, count = content["frames"], sum(batch_frames)
    domain, streams = from_runs(frames["domain"]), frames["stream"]
    for found in (domain, streams and from_runs(streams)):
        if found and len(found) != count:
            raise ValueError(f"{len(found)} frames in one place, {count} in another")
    measured = content["durations"]
    return ReplayResult(
        name=content["name"],
        configuration_hash=content["configuration_hash"],
        scenario=content["scenario"],
        data=content["data"],
        model=content["model"],
        versions=content["versions"],
        domains=[
            DomainSpan(**{**span, "severity": tuple(span["severity"])})
            for span in content["domains"]
        ],
        batch_frames=batch_frames,
        frame_domains=domain,  # type: ignore[arg-type]
        frame_streams=None if streams is None else from_runs(streams),
        labelled=unpack_bits(frames["labelled"], count=count),
        policies=[
            series_from_dict(
                series,
                frames=count,
                latency_seconds=measured["latency_seconds"][series["name"]]["batches"],
            )
            for series in content["policies"]
        ],
        events=[ReplayEvent(**event) for event in content["events"]],
        wall_seconds=_number(measured["wall_seconds"]),
    )


def series_to_dict(series: PolicySeries) -> dict[str, Any]:
    """A policy's series in plain values, without what a clock measured."""
    bins = series.reliability
    return {
        "name": series.name,
        "description": series.description,
        "oracle": series.oracle,
        "correct": pack_bits(series.correct),
        "confidence": _plain(series.confidence),
        "diversity": _plain(series.diversity),
        "reliability": {
            "frames": list(bins.frames),
            "confidence": _plain(bins.confidence),
            "accuracy": _plain(bins.accuracy),
        },
        "expected_calibration_error": finite_or_none(expected_calibration_error(bins)),
        "distance": _plain(series.distance),
        "layer_distance": {name: _plain(one) for name, one in series.layer_distance.items()},
        "layers": list(series.layer_distance),  # in their order, which sorted keys lose
        "layer_batches": list(series.layer_batches),
        "adapted": list(series.adapted),
    }


def series_from_dict(
    content: Mapping[str, Any], *, frames: int, latency_seconds: Iterable[float]
) -> PolicySeries:
    """The series that `series_to_dict` was given.

    Args:
        content: what it returned.
        frames: how many the stream has.
        latency_seconds: what it left out.
    """
    bins = content["reliability"]
    return PolicySeries(
        name=content["name"],
        description=content["description"],
        oracle=content["oracle"],
        correct=unpack_bits(content["correct"], count=frames),
        confidence=_numbers(content["confidence"]),
        diversity=_numbers(content["diversity"]),
        reliability=Reliability(
            bins["frames"], _numbers(bins["confidence"]), _numbers(bins["accuracy"])
        ),
        distance=content["distance"],
        layer_distance={
            name: _numbers(content["layer_distance"][name]) for name in content["layers"]
        },
        layer_batches=content["layer_batches"],
        adapted=content["adapted"],
        latency_seconds=list(latency_seconds),
    )


def finite_or_none(value: float | None) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if value is not None and math.isfinite(value) else None


def _plain(values: Iterable[float | None]) -> list[float | None]:
    return [finite_or_none(value) for value in values]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [_number(value) for value in values]
