"""`streamadapt replay`, through the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from streamadapt.cli import main
from streamadapt.cli.progress import ProgressBar
from streamadapt.cli.replay import format_table
from streamadapt.replay.result import ReplayResult
from streamadapt.replay.runner import run
from tests.unit.replay.tiny import brightness, scenario, tiny_data, without_durations

SCENARIO = """
name = "tiny"
data = "d.npz"
model = "tests.unit.replay.tiny:brightness"
batch_size = 10
[[domain]]
name = "clear"
samples = 30
[[domain]]
name = "glare"
corruption = "over_exposure"
samples = 30
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = tiny_data()
    np.savez(tmp_path / "d.npz", x=data.x, y=data.y)
    (tmp_path / "s.toml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    return tmp_path


def call(*arguments: str) -> int:
    """In this process: a worker takes a second to start."""
    return main(["replay", *arguments, "--jobs", "1"])


def test_prints_a_table_and_keeps_a_run(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("s.toml") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("tiny: 60 frames, seed 0, batch size 10, iid, configuration ")
    assert lines[2].split() == ["error", "%", "frozen", "adapted"]
    assert [line.split()[0] for line in lines[4:]][:2] == ["clear", "glare"]
    assert [line.split()[0] for line in lines[-6:]] == ["mean", "less", "95", "ECE", "p50", "p99"]
    (folder,) = (files / "runs").iterdir()
    assert folder.name == f"tiny-{lines[0].split()[-1]}"
    result = folder.relative_to(files) / "result.json"
    assert printed.err == f"result: {result}\nreport: {result.with_name('report.html')}\n"
    assert ReplayResult.load(folder).name == "tiny"
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_a_finished_run_is_shown_again(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("s.toml", "--run-dir", "here") == 0
    first = capsys.readouterr()
    assert call("s.toml", "--run-dir", "here") == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert again.err.startswith("here: had finished before, nothing was run again")
    assert call("s.toml", "--run-dir", "here", "--fresh") == 0
    fresh = capsys.readouterr()
    assert "had finished" not in fresh.err
    assert fresh.out.splitlines()[:8] == first.out.splitlines()[:8]


def test_gives_pure_json_and_obeys_its_options(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(files / "e.npz", x=np.zeros((9, 8, 8, 3), np.uint8), y=np.zeros(9, np.int64))
    (files / "sub").mkdir()
    (files / "s.toml").rename(files / "sub" / "s.toml")
    options = ["--seed", "5", "--batch-size", "3", "--data", "e.npz", "--json", "-"]
    assert call("sub/s.toml", *options, "--policy", "adapted") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["scenario"]["seed"] == 5
    assert content["scenario"]["batch_size"] == 3
    assert content["data"]["samples"] == 9
    assert [policy["name"] for policy in content["policies"]] == ["adapted"]


def test_writes_copies_where_it_is_told(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("s.toml", "--run-dir", "r", "--json", "x.json", "--html", "x.html") == 0
    assert capsys.readouterr().err.startswith("wrote x.html\nwrote x.json\nresult: r/result.json")
    assert (files / "x.json").read_text() == (files / "r" / "result.json").read_text()
    assert (files / "x.html").read_text() == (files / "r" / "report.html").read_text()


def test_several_seeds_make_one_table(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("s.toml", "--seeds", "0-1,7", "--run-dir", "r") == 0
    out = capsys.readouterr().out
    assert "seeds 0, 1, 7" in out.splitlines()[0]
    results = [ReplayResult.load(files / "r" / f"seed-{seed}") for seed in (0, 1, 7)]
    row = next(line for line in out.splitlines() if line.startswith("glare"))
    expected = np.mean([100 * result.error("frozen")[1] for result in results])
    assert float(row.split()[1]) == pytest.approx(expected, abs=0.051)
    assert call("s.toml", "--seeds", "0-1", "--json", "-") == 2
    assert "are for one seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Nothing to replay. Give a scenario"),
        (["s.toml", "--model", "absent_model:make"], 2, "cannot import `absent_model`"),
        (["s.toml", "--data", "absent.npz"], 1, "no such file or folder"),
        (["s.toml", "--html", "absent/r.html"], 1, "cannot be written: there is no folder absent"),
        (["s.toml", "--policy", "best"], 2, "has no policy `best`. Known: frozen, adapted"),
        (["s.toml", "--run-dir", "d.npz"], 1, "d.npz: cannot be a run directory"),
        (["s.toml", "--seeds", "3-1"], 2, "seeds are written 0-4 or 0,1,2"),
        (["s.toml", "--seeds", "1,1"], 2, "seeds are written 0-4 or 0,1,2"),
        (["s.toml", "--seeds", "1", "--seed", "1"], 2, "not allowed with"),
    ],
)
def test_what_is_wrong_is_one_line(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert call(*arguments) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_data_without_labels_say_so(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(files / "d.npz", x=np.zeros((9, 8, 8, 3), np.uint8))
    assert call("s.toml") == 1
    assert "no labels" in capsys.readouterr().err


def test_several_jobs_come_to_the_same(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("s.toml", "--run-dir", "one") == 0
    assert main(["replay", "s.toml", "--run-dir", "two", "--jobs", "2"]) == 0
    one, two = (files / name / "result.json" for name in ("one", "two"))
    assert without_durations(one) == without_durations(two)


def test_the_table_says_what_is_an_oracle_and_who_came_too_late(tmp_path: Path) -> None:
    result = run(scenario(), model=brightness(), data=tiny_data())
    table = format_table(result)
    assert "oracle (oracle)" in table and "clear (2)" in table and "too late" not in table
    gain = 100 * (result.mean_error("oracle") - result.mean_error("frozen"))
    row = next(line for line in table.splitlines() if line.startswith("less frozen"))
    assert row.split()[-1] == f"{gain:+.1f}"
    adapted = [bool(number % 2) for number in range(20)]
    for series in result.policies:
        object.__setattr__(series, "adapted", adapted)
    assert "too late %" in format_table(result)


def test_the_bar_tells_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 10.0, 15.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    bar = ProgressBar()
    bar(1, 4, "silent")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = ProgressBar("seed 3, ")
    bar(0, 1, "making frames")
    bar(100, 400, "frozen: fog")
    bar(200, 400, "frozen: fog")
    bar.close()
    lines = capsys.readouterr().err.split("\r\x1b[K")
    assert lines[1] == "seed 3, making frames"
    assert lines[2].split("]")[1] == "  25 %  seed 3, frozen: fog"
    assert lines[3] == f"[{'#' * 12}{' ' * 12}]  50 % 0:10 left  seed 3, frozen: fog"
