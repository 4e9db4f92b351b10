"""The demo, as a stranger runs it: through the command line, on what the package ships."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamadapt.cli import main
from streamadapt.replay.demo import DemoResult, Phase, judge, run_demo
from streamadapt.replay.incidents import CoveredLens, SpoiltBatch

PHASES = ["clear", "fog", "night", "noise", "clear again"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one run with the stock settings has left its page and its JSON."""
    folder = tmp_path_factory.mktemp("demo")
    page, everything = str(folder / "page.html"), str(folder / "all.json")
    assert main(["demo", "--output", page, "--json", everything]) == 0
    return folder


@pytest.fixture(scope="module")
def everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "all.json").read_text())
    return found


@pytest.fixture(scope="module")
def result() -> DemoResult:
    return run_demo()


def test_adapted_beats_frozen_where_it_should(everything: dict[str, Any]) -> None:
    phases = {phase["name"]: phase for phase in everything["phases"]}
    assert list(phases) == PHASES
    assert phases["fog"]["adapted"] - phases["fog"]["frozen"] >= 10
    assert phases["night"]["adapted"] - phases["night"]["frozen"] >= 10
    for name in ("clear", "clear again"):
        assert phases[name]["adapted"] - phases[name]["frozen"] >= -1
    assert everything["passed"] is True
    assert [check["passed"] for check in everything["checks"]] == [True] * 5


def test_accuracy_by_phase_is_what_the_frames_say(everything: dict[str, Any]) -> None:
    replay = everything["replay"]
    assert replay["frames"]["domain"] == [[index, 720] for index in range(5)]
    for policy in replay["policies"]:
        packed = np.frombuffer(base64.b64decode(policy["correct"]), np.uint8)
        right = np.unpackbits(packed, count=3600).reshape(5, 720)
        for index, phase in enumerate(everything["phases"]):
            assert phase[policy["name"]] == pytest.approx(100 * right[index].mean())
            start = 100 * right[index, :64].mean()
            assert phase[f"{policy['name']}_start"] == pytest.approx(start)


def test_a_bad_batch_is_answered_and_forgotten(everything: dict[str, Any]) -> None:
    assert everything["spoilt_batch"] == {
        "phase": "night",
        "frames": 16,
        "rejected": 16,
        "answers": 16,
        "statistics_unchanged": True,
    }
    kinds = [event["kind"] for event in everything["replay"]["events"]]
    assert {"FramesRejected", "SnapshotTaken", "RolledBack"} <= set(kinds)


def test_a_rollback_undoes_the_harm(everything: dict[str, Any]) -> None:
    covered = everything["covered_lens"]
    assert covered["distance_after"] > 10 * covered["distance_before"]
    assert covered["accuracy_after"] < covered["accuracy_before"] - 50
    assert covered["statistics_restored"] is True
    assert covered["distance_restored"] == covered["distance_before"]
    assert covered["accuracy_restored"] == covered["accuracy_before"]


def test_metrics_are_served_while_it_runs(everything: dict[str, Any]) -> None:
    metrics = everything["metrics"]
    scored, incidents = 225, 21
    assert metrics["streamadapt_batches_total"] == scored + incidents
    assert metrics['streamadapt_updates_total{outcome="rejected"}'] == 1
    assert metrics['streamadapt_rollbacks_total{reason="lens covered"}'] == 1
    assert metrics["streamadapt_healthy"] == 1


def test_the_page_needs_nothing_else(folder: Path) -> None:
    page = (folder / "page.html").read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|\ssrc=", page)
    for text in (*PHASES, "rolled back", "frames rejected", "Distance from the source"):
        assert text in page


def test_the_same_seed_gives_the_same_result(
    everything: dict[str, Any], result: DemoResult
) -> None:
    one = json.loads(json.dumps(result.to_dict()))
    other = {key: value for key, value in everything.items() if key != "metrics"}
    one["replay"] = {**one["replay"], "durations": None}
    assert one == {**other, "replay": {**other["replay"], "durations": None}}


def test_threads_are_as_they_were(result: DemoResult) -> None:
    before = torch.get_num_threads()
    seen = []
    run_demo(progress=lambda done, total, phase: seen.append(torch.get_num_threads()))
    assert set(seen) == {1} and torch.get_num_threads() == before


def test_it_fails_when_adaptation_does_not_help(
    result: DemoResult,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    phases = tuple(
        dataclasses.replace(phase, adapted=phase.frozen + 9.0) if phase.name == "night" else phase
        for phase in result.phases
    )
    checks = judge(phases, result.spoilt, result.covered)
    failed = dataclasses.replace(result, phases=phases, checks=checks)
    monkeypatch.setattr("streamadapt.replay.demo.run_demo", lambda **_: failed)
    page = tmp_path / "page.html"
    assert main(["demo", "--no-serve", "--json", "-", "--output", str(page)]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["passed"] is False and found["metrics"] is None
    frozen = phases[PHASES.index("night")].frozen
    assert captured.err.splitlines()[-1] == (
        f"streamadapt: demo failed: night: frozen {frozen:.1f} %, adapted {frozen + 9:.1f} %: "
        "+9.0 points, at least +10 wanted"
    )
    assert "NOT kept: night" in page.read_text()


def test_the_bar_is_where_it_is_said_to_be() -> None:
    spoilt = SpoiltBatch("night", 16, 16, 16, True)
    covered = CoveredLens("noise", 320, 320, 0.1, 5.0, 0.1, 99.0, 10.0, 99.0, True)

    def failed(**adapted: float) -> set[str]:
        phases = [
            Phase(name, 720, 50.0, adapted.get(name.replace(" ", "_"), 60.0), 50.0, 60.0)
            for name in PHASES
        ]
        return {check.name for check in judge(phases, spoilt, covered) if not check.passed}

    assert failed() == set()
    assert failed(fog=59.9) == {"fog"}
    assert failed(night=59.9) == {"night"}
    assert failed(noise=0.0) == set()
    assert failed(clear=49.0, clear_again=49.0) == set()
    assert failed(clear=47.9, clear_again=50.0) == {"clear"}

    worse = dataclasses.replace(spoilt, statistics_unchanged=False)
    lost = dataclasses.replace(covered, statistics_restored=False)
    names = [check.name for check in judge(run_phases(), worse, lost) if not check.passed]
    assert names == ["bad batch", "rollback"]


def run_phases() -> list[Phase]:
    return [Phase(name, 720, 50.0, 60.0, 50.0, 60.0) for name in PHASES]


@pytest.mark.parametrize(
    "arguments", [["--severity", "6"], ["--severity", "0"], ["--seed", "-1"], ["--port", "70000"]]
)
def test_wrong_arguments_are_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["demo", "--output", str(tmp_path / "page.html"), *arguments]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"streamadapt: Cannot serve metrics on 127.0.0.1:{port}")
    assert error.count("\n") == 1


def test_a_page_that_cannot_be_written_is_one_line(
    result: DemoResult,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("streamadapt.replay.demo.run_demo", lambda **_: result)
    missing = tmp_path / "none" / "page.html"
    assert main(["demo", "--no-serve", "--output", str(missing)]) == 1
    assert capsys.readouterr().err == (
        f"streamadapt: {missing}: cannot be written (No such file or directory).\n"
    )


def test_a_camera_that_hardly_suffers_is_not_what_the_bar_is_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = str(tmp_path / "page.html")
    assert main(["demo", "--no-serve", "--severity", "1", "--output", page]) == 1
    assert capsys.readouterr().err.endswith(
        "streamadapt: the bar is set for severity 4, this was severity 1.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_it_holds_over_five_seeds(seed: int) -> None:
    found = run_demo(seed=seed)
    assert found.passed, [check.words for check in found.checks if not check.passed]
    for phase in found.phases:
        if phase.name.startswith("clear"):
            assert phase.gain >= -1
