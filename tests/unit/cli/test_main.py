"""Exit codes, one line for an error, and quiet ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import streamadapt
from streamadapt.cli import main
from streamadapt.errors import ConfigurationError, DataError, UnsupportedModelError


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"streamadapt {streamadapt.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["doctor", "--frobnicate"]])
def test_wrong_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("usage: streamadapt")


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("demo", "doctor", "replay"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("`x` must be\nless."), 2),
        (DataError("`x` must be\nless."), 1),
        (UnsupportedModelError("`x` must be\nless."), 1),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(
    error: Exception,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _raise_in_doctor(monkeypatch, error)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == "streamadapt: `x` must be less.\n"


def test_an_interrupt_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raise_in_doctor(monkeypatch, KeyboardInterrupt())
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == ""


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    _raise_in_doctor(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_a_missing_scenario_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none.toml")]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("streamadapt: ") and error.count("\n") == 1


def test_nobody_reading_the_output_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "streamadapt", "doctor"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_the_module_runs_like_the_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "streamadapt", "frobnicate"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: streamadapt ")


def _raise_in_doctor(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("streamadapt.doctor.examine", fail)
