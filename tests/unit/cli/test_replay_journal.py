"""`streamadapt replay --journal`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import streamadapt as sa
from streamadapt.cli.command import main


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journal")
    torch.manual_seed(0)
    with sa.StreamProcessor(
        nn.BatchNorm2d(3).eval(), estimator=sa.estimators.EMA(), journal=folder
    ) as processor:
        for step in range(20):
            processor(torch.randn(4, 3, 5, 5) + (3.0 if step >= 10 else 0.0), streams="front door")
    return folder


def test_it_prints_what_was_recorded(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--journal", str(journal)]) == 0
    out = capsys.readouterr().out
    assert "21 records in 1 files" in out
    assert "(as recorded)" in out
    assert "front door" in out


def test_another_setting_and_its_alarms(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--estimator", "EMA", "momentum=0.5", "--threshold", "1", "--json", "-"]
    assert main(["replay", "--journal", str(journal), *settings]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert content["as_recorded"] is False
    assert content["streams"]["front door"]["alarms"] == [10]
    assert "first-order answer" in captured.err
    assert "alarm at step 10" in captured.err


def test_a_cut_journal_is_read_and_said_to_be_cut(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (journal / "journal-000001.saj").read_bytes()
    (tmp_path / "journal-000001.saj").write_bytes(data[:-100])
    assert main(["replay", "--journal", str(tmp_path)]) == 0
    assert "damaged bytes left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--journal", "nowhere"], 1, "no such file"),
        (["--journal", "{j}", "x.toml"], 2, "not both"),
        (["--journal", "{j}", "--estimator", "Magic"], 2, "Unknown estimator"),
        (["--journal", "{j}", "--estimator", "EMA", "momentum"], 2, "KEY=VALUE"),
        (["--journal", "{j}", "--estimator", "EMA", "speed=3"], 2, "does not take"),
        (["--journal", "{j}", "--estimator", "EMA", "momentum=7"], 2, "momentum"),
        (["--threshold", "3", "x.toml"], 2, "for `--journal`"),
        ([], 2, "Nothing to replay"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], code: int, words: str, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", *(one.format(j=journal) for one in arguments)]) == code
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
