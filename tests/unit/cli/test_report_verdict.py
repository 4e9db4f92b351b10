"""`streamadapt report --verdict`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import streamadapt as sa
from streamadapt.cli.command import main


def record(folder: Path, **arguments: object) -> Path:
    """A journal of two cameras, of which one is in the source's world."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with sa.StreamProcessor(
        model, shadow_every=1, max_streams=2, alarms=None, journal=folder, **arguments
    ) as processor:
        for step in range(42):
            frames = torch.randn(64, 4, 5, 5)
            frames[32:] += 2.0
            streams = ["front door"] * 32 + ["yard"] * 32
            processor(frames, streams=streams, pts_seconds=[step * 1.28] * 64)
    return folder


@pytest.fixture(scope="module")
def shadow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("shadow"), mode="shadow", guard=sa.Guard())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("plain"), mode="shadow")


def test_it_prints_a_line_a_stream(shadow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--verdict", str(shadow)]) == 0
    captured = capsys.readouterr()
    head, front, yard, *_ = captured.out.splitlines()
    assert head.split()[:3] == ["stream", "frames", "windows"]
    assert front.split()[:4] == ["front", "door", "1344", "5"]
    assert front.endswith("don't")
    assert yard.split()[:3] == ["yard", "1344", "5"]
    assert "front door: its answers are the source's, adapted or not\n" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("end", [["--json"], ["--json", "-"]])
def test_numbers_go_to_stdout_and_words_to_stderr(
    end: list[str], shadow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--verdict", str(shadow), *end]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert (content["kind"], content["schema_version"]) == ("streamadapt.verdict", 1)
    front = content["streams"]["front door"]
    assert front["advice"] == "don't"
    assert (front["gain"], front["low"], front["high"], front["agreement"]) == (0, 0, 0, 1)
    assert set(content["streams"]) == {"front door", "yard"}
    assert "front door" in captured.err


def test_numbers_go_to_a_file(
    shadow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shadow / "journal-000001.saj"
    assert main(["report", "--verdict", str(file), "--json", f"{tmp_path}/v.json"]) == 0
    assert "front door" in json.loads((tmp_path / "v.json").read_text())["streams"]
    assert "front door" in capsys.readouterr().out


def test_too_little_is_said_to_be_too_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with sa.StreamProcessor(
        model, mode="shadow", guard=sa.Guard(), alarms=None, journal=tmp_path
    ) as processor:
        processor(torch.randn(8, 4, 5, 5))
    assert main(["report", "--verdict", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert "not enough evidence" in captured.err and "1280" in captured.err
    one = json.loads(captured.out)["streams"]["default"]
    assert (one["frames"], one["windows"], one["gain"], one["low"]) == (8, 0, None, None)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--verdict", "nowhere"], 1, "nowhere: there is no such file"),
        (["--verdict", "{shadow}", "{empty}"], 1, "there is no journal in this folder"),
        (["--verdict", "{page}"], 1, "not a journal"),
        (["--verdict", "{shadow}", "--json", "{empty}/no/such.json"], 1, "cannot be written"),
        (["--verdict", "{plain}"], 2, 'mode="shadow", guard=streamadapt.Guard(), journal=FOLDER'),
        (["--verdict", "{shadow}", "--csv", "x.csv"], 2, "`--csv` is for replays"),
        (["--verdict", "{shadow}", "--fail-on", "cost > 3"], 2, "`--fail-on` is for replays"),
        (["--verdict", "{shadow}", "-o", "x.html"], 2, "`--output` is for replays"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str],
    code: int,
    words: str,
    shadow: Path,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.html").write_text("<!doctype html>")
    places = {"shadow": shadow, "plain": plain, "empty": tmp_path / "empty"}
    places["page"] = tmp_path / "page.html"
    assert main(["report", *(one.format(**places) for one in arguments)]) == code
    error = capsys.readouterr().err.strip().splitlines()
    assert words in error[-1]
    assert error[-1].startswith("streamadapt: ")
    assert len([line for line in error if "Traceback" in line]) == 0


def test_a_verdict_needs_a_journal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--verdict"]) == 2
    assert "RUN" in capsys.readouterr().err
