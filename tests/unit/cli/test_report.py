"""`streamadapt report`: what is written where, and what the exit code says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from streamadapt.cli.command import main

SCENARIO = """
name = "two skies"
model = "streamadapt.replay.digits:digits_network"
data = "builtin:digits"
batch_size = 16
resize = [24, 24]
normalize = { mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }

[[domain]]
name = "clear"
samples = 48
corruption = "none"

[[domain]]
name = "fog"
samples = 48
corruption = "fog"

[[policy]]
kind = "frozen"
name = "frozen"

[[policy]]
kind = "estimator"
estimator = "EMA"
name = "EMA"
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "s.toml").write_text(SCENARIO)
    code = main(
        ["replay", f"{folder}/s.toml", "--seeds", "0-1", "--run-dir", f"{folder}/r", "--jobs", "1"]
    )
    assert code == 0
    return folder / "r"


def test_a_folder_of_seeds_is_one_page(runs: Path, tmp_path: Path) -> None:
    assert main(["report", str(runs), "-o", f"{tmp_path}/page.html"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "2 seeds" in page
    assert (
        main(["report", f"{runs}/seed-1", f"{runs}/seed-0/result.json", "-o", f"{tmp_path}/b.html"])
        == 0
    )
    assert (tmp_path / "b.html").read_text() == page


def test_without_a_wish_the_page_is_report_html(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_numbers_go_where_they_are_wanted(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--csv", f"{tmp_path}/n.csv", "--picture", f"{tmp_path}/p.svg"]
    assert main(["report", str(runs), "--json", "-", *files]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["scenarios"][0]["seeds"] == [0, 1]
    with (tmp_path / "n.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 2
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    assert not (tmp_path / "report.html").exists()


def test_a_condition_decides_the_exit_code(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs), "--fail-on", "error(frozen) > 1"]) == 0
    assert main(["report", str(runs), "--fail-on", "error(frozen) >= 0"]) == 1
    assert "two skies: error(frozen) is 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 1, "nowhere: cannot be read"),
        (["{runs}", "--fail-on", "fast"], 2, "Cannot read the condition"),
        (["{runs}", "--fail-on", "error(x) > 0"], 2, "no policy `x`"),
        (["{runs}", "--compare", "frozen", "x"], 2, "no policy `x`"),
        (["{runs}", "{runs}"], 2, "same seed"),
        (["{runs}", "--json", "-", "--csv", "-"], 2, "Only one"),
        (["{runs}", "-o", "{runs}/no/such.html"], 1, "cannot be written"),
        ([], 2, "RUN"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], code: int, words: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *(one.format(runs=runs) for one in arguments)]) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
