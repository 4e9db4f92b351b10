"""What `streamadapt snapshot` shows of a store, and how it brings a state back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import streamadapt as sa
from streamadapt.cli import main
from tests.models import residual


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two streams; three generations of `dock-1`, the statistics of a residual network."""
    for turn in range(3):
        with (
            torch.no_grad(),
            sa.StreamProcessor(
                residual(), store=tmp_path, max_streams=2, estimator=sa.estimators.EMA(0.5)
            ) as processor,
        ):
            processor(torch.full((2, 3, 12, 12), float(turn)), streams="dock-1")
            if turn == 0:
                processor(torch.ones(1, 3, 12, 12), streams=7)
    return tmp_path


def test_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshot", "list", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith('"dock-1"  generations 1 to 3, newest of step 1') for line in lines)
    assert main(["snapshot", "list", str(folder), "--json"]) == 0
    rows = {row["stream"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["dock-1"]["generations"] == [1, 2, 3] and rows[7]["generations"] == [1]


def test_a_damaged_generation_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = sa.FileStore(folder).generations("dock-1")[-1].path
    newest.write_bytes(b"x")
    assert main(["snapshot", "list", str(folder)]) == 0
    out = capsys.readouterr().out
    assert str(newest) in out and "generations 1 to 3" in out


def test_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshot", "show", str(folder), "dock-1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["generation"] == "3" and shown["estimator"] == "EMA"
    assert shown["counters"]["frames"] == 6.0
    assert shown["distance_from_source"].keys() == {"bn1", "bn2", "bn3"}
    assert all(distance > 0 for distance in shown["distance_from_source"].values())
    assert main(["snapshot", "show", str(folder), "7"]) == 0
    assert "EMA, 1 frames" in capsys.readouterr().out


def test_diff(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshot", "diff", str(folder), "dock-1", "3", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["distance"].values()) == {0.0}
    assert main(["snapshot", "diff", str(folder), "dock-1", "source", "2", "--json"]) == 0
    between = json.loads(capsys.readouterr().out)
    assert between["one"] == "source" and min(between["distance"].values()) > 0.0
    assert main(["snapshot", "diff", str(folder), "dock-1", "1"]) == 0
    assert "distance between 1 and 3" in capsys.readouterr().out


def test_restore(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = sa.FileStore(folder)
    first = store.generations("dock-1")[0].read()
    assert main(["snapshot", "restore", str(folder), "dock-1", "1"]) == 0
    assert 'generation 1 is generation 4 of "dock-1" now' in capsys.readouterr().out
    found = store.load("dock-1")
    assert found.generation == 4 and found.state is not None
    assert np.array_equal(found.state.statistics, first.statistics)


def test_restoring_the_source_has_a_stream_begin_anew(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["snapshot", "restore", str(folder), "dock-1", "source"]) == 0
    assert "the source is generation 4" in capsys.readouterr().out
    assert main(["snapshot", "show", str(folder), "dock-1"]) == 0
    assert main(["snapshot", "diff", str(folder), "dock-1", "source"]) == 0
    with (
        torch.no_grad(),
        sa.StreamProcessor(
            residual(), store=folder, max_streams=2, estimator=sa.estimators.EMA(0.5)
        ) as processor,
    ):
        processor.freeze()
        processor(torch.ones(1, 3, 12, 12), streams="dock-1")
        assert processor.drift("dock-1").overall == 0.0
        assert processor.event_counts.get("StateRefused", 0) == 0


def test_restore_waits_for_nobody(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sa.StreamProcessor(residual(), store=folder):
        assert main(["snapshot", "restore", str(folder), "dock-1", "1"]) == 2
    assert "Another processor keeps its store in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["show", "dock-2"], "holds nothing of 'dock-2' (it holds "),
        (["show", "dock-1", "-g", "9"], '"dock-1" has no generation 9 (it has 1, 2, 3).'),
        (["diff", "dock-1", "old"], "'old' is neither a generation's number nor `source`."),
        (["restore", "dock-1", "9"], "has no generation 9"),
    ],
)
def test_what_is_not_there_is_said(
    folder: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    action, *rest = arguments
    assert main(["snapshot", action, str(folder), *rest]) == 2
    assert reason in capsys.readouterr().err


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshot", "list", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["snapshot", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_the_folder_of_a_run_holds_stores(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dir = tmp_path_factory.mktemp("state")
    assert main(["snapshot", "list", str(state_dir)]) == 0
    assert "holds nothing" in capsys.readouterr().err
    shutil.copytree(folder, state_dir / "adapt")
    assert main(["snapshot", "list", str(state_dir)]) == 0
    assert '"dock-1"' in capsys.readouterr().out
    shutil.copytree(folder, state_dir / "night")
    assert main(["snapshot", "list", str(state_dir)]) == 2
    assert str(state_dir / "night") in capsys.readouterr().err
