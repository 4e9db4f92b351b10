"""`streamadapt calibrate`: a file that a processor takes, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import streamadapt as sa
from streamadapt.cli import main
from streamadapt.replay.models import load_model

MODEL = "streamadapt.replay.digits:digits_network"
DIGITS = [
    *("calibrate", "--model", MODEL, "--data", "builtin:digits", "--resize", "24", "24"),
    *("--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5", "--images", "128"),
]


def test_it_writes_a_profile_that_a_processor_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits.safetensors"
    assert main([*DIGITS, "-o", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    profile = sa.SourceProfile.load(path)
    assert shown["frames"] == profile.frames == 128
    assert shown["fingerprint"] == profile.fingerprint
    assert 0 < shown["entropy_nats"] < 2.3
    assert 5 < shown["diversity_classes"] <= 10
    with sa.StreamProcessor(load_model(MODEL).eval(), profile=path) as processor:
        assert processor.calibrated


def test_for_people_it_is_a_short_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "digits.safetensors"
    assert main([*DIGITS, "-o", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["output", str(path)]
    assert any(line.split()[:1] == ["settled"] for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--images", "0"], "--images must be at least 1, got 0.", 2),
        (["--std", "0", "1", "1"], "--std must be positive", 2),
        (["--images", "20"], "at least 64 frames, got 20", 1),
        (["--data", "nowhere.npz"], "nowhere.npz", 1),
        (["-o", "/nowhere/it"], "/nowhere/it: cannot be written", 1),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DIGITS, *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
