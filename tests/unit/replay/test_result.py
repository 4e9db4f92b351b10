"""A result as a value: what it says, and that it comes back from JSON as it was."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.result import (
    DomainSpan,
    PolicySeries,
    Reliability,
    ReplayEvent,
    ReplayResult,
)

NAN = float("nan")


def series(name: str, correct: list[int], **changes: Any) -> PolicySeries:
    values: dict[str, Any] = {
        "name": name,
        "description": f"does {name}",
        "oracle": False,
        "correct": correct,
        "confidence": [0.75, NAN],
        "diversity": [1.5, NAN],
        "reliability": Reliability([4] + [0] * 14, [0.05] + [NAN] * 14, [0.75] + [NAN] * 14),
        "distance": [None, 0.5],
        "layer_distance": {"bn": [0.5]},
        "layer_batches": [1],
        "adapted": [True, False],
        "latency_seconds": [0.25, 0.5],
    }
    return PolicySeries(**{**values, **changes})


@pytest.fixture
def result() -> ReplayResult:
    return ReplayResult(
        name="small",
        configuration_hash="0123456789ab",
        scenario={"seed": 3},
        data={"samples": 6},
        model={"class": "Net"},
        versions={"torch": "2"},
        domains=[
            DomainSpan("fog", 0, "fog", (1, 3), 0, 3, 1.5, "north"),
            DomainSpan("dark", 1, "none", (), 3, 2, 1.0, "south"),
            DomainSpan("unknown", 0, "none", (), 5, 1, 1.0, "south"),
        ],
        batch_frames=[3, 3],
        frame_domains=[0, 0, 1, 0, 1, 2],  # type: ignore[arg-type]
        frame_streams=["north", "north", "south", "north", "south", "south"],
        labelled=[True, False, True, True, True, False],  # type: ignore[arg-type]
        policies=[series("a", [1, 0, 0, 0, 1, 0]), series("b", [1, 0, 1, 1, 1, 0])],
        events=[ReplayEvent(1, "a", "RolledBack", {"reason": "test", "steps": [1, 2]})],
        wall_seconds=2.5,
    )


def test_errors_are_of_the_frames_that_have_labels(result: ReplayResult) -> None:
    assert result.error("a")[:2] == [0.5, 0.5] and math.isnan(result.error("a")[2])
    assert result.mean_error("a") == 0.5 and result.mean_error("b") == 0.0
    assert result.interval("a", "b").estimate == 0.5
    assert result.expected_calibration_error("a") == pytest.approx(0.7)
    assert result.latency_seconds("a", 0.5) == 0.375
    assert repr(result) == "ReplayResult('small', frames=6, error: a 50.0 %, b 0.0 %)"
    assert repr(result.policy("a")) == "PolicySeries('a', 'does a', frames=6, batches=2)"
    with pytest.raises(ConfigurationError, match="no policy `best` in this result"):
        result.error("best")


def test_json_comes_back_as_it_was(result: ReplayResult, tmp_path: Path) -> None:
    text = result.to_json()
    again = ReplayResult.from_json(text)
    assert again.to_json() == text
    assert again.domains == result.domains
    assert again.frame_domains.tolist() == result.frame_domains.tolist()
    assert again.labelled.tolist() == result.labelled.tolist()
    assert again.frame_streams == result.frame_streams
    assert again.policy("a").correct.tolist() == result.policy("a").correct.tolist()
    assert math.isnan(again.policy("a").confidence[1])
    assert again.events == result.events
    (tmp_path / "result.json").write_text(text)
    assert ReplayResult.load(tmp_path).to_json() == text
    assert ReplayResult.load(tmp_path / "result.json").to_json() == text


def test_json_is_as_it_is_written_down(result: ReplayResult) -> None:
    content = json.loads(result.to_json())
    assert content["schema_version"] == 2 and content["kind"] == "streamadapt.replay"
    assert content["batches"] == {"frames": [3, 3]}
    assert content["frames"]["domain"] == [[0, 2], [1, 1], [0, 1], [1, 1], [2, 1]]
    assert content["frames"]["stream"][0] == ["north", 2]
    assert base64.b64decode(content["frames"]["labelled"]) == bytes([0b10111000])
    first = content["policies"][0]
    assert base64.b64decode(first["correct"]) == bytes([0b10001000])
    assert first["error"] == [0.5, 0.5, None] and first["confidence"] == [0.75, None]
    assert first["reliability"]["accuracy"][:2] == [0.75, None]
    assert "seconds" not in json.dumps({k: v for k, v in content.items() if k != "durations"})
    assert content["durations"] == {
        "wall_seconds": 2.5,
        "latency_seconds": {
            name: {"p50": 0.375, "p99": 0.4975, "batches": [0.25, 0.5]} for name in ("a", "b")
        },
    }


def damage(result: ReplayResult, *path: Any, value: Any) -> str:
    content = json.loads(result.to_json())
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(content)


def test_what_is_not_a_result_says_so(result: ReplayResult, tmp_path: Path) -> None:
    cases = {
        "not valid JSON": "{",
        r"no `kind` of `streamadapt\.replay`": "[]",
        "has schema version 1, this version of streamadapt reads 2. Run the scenario again": damage(
            result, "schema_version", value=1
        ),
        "damaged: `correct` is missing": damage(result, "policies", 0, "correct", value=None),
        "damaged: 0 bytes for 6 bits": damage(result, "policies", 0, "correct", value=""),
        "damaged: 7 frames in one place, 6 in another": damage(
            result, "frames", "domain", value=[[0, 7]]
        ),
    }
    for message, text in cases.items():
        with pytest.raises(DataError, match=message):
            ReplayResult.from_json(text)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json: Not a replay result"):
        ReplayResult.load(tmp_path / "broken.json")
    with pytest.raises(DataError, match=r"absent\.json: cannot be read \(No such file"):
        ReplayResult.load(tmp_path / "absent.json")
    with pytest.raises(DataError, match=r"no result\.json in it: the run has not finished"):
        ReplayResult.load(tmp_path)


def test_labels_may_be_missing_altogether(result: ReplayResult) -> None:
    blind = ReplayResult.from_json(damage(result, "frames", "labelled", value="AA=="))
    assert math.isnan(blind.mean_error("a"))
    assert math.isnan(blind.interval("a", "b").low)
    assert np.isnan(blind.error("a")).all()
    assert json.loads(blind.to_json())["policies"][0]["mean_error"] is None
