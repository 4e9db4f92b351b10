"""What a run directory keeps, and that a run may be killed at any moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.data import LabelledData
from streamadapt.replay.policies import FrozenPolicy
from streamadapt.replay.result import ReplayResult
from streamadapt.replay.rundir import RunDirectory, run_directory_name, slug
from streamadapt.replay.runner import run
from streamadapt.replay.scenario import PolicySpec
from tests.unit.replay.tiny import brightness, scenario, tiny_data, without_durations

REPOSITORY = Path(__file__).resolve().parents[3]
BATCHES = 20


def go(folder: Path, **changes: Any) -> tuple[ReplayResult, set[str]]:
    """A run, and the policies that were not there already."""
    busy: set[str] = set()
    arguments = {"model": brightness(), "data": tiny_data(), **changes.pop("arguments", {})}

    def note(done: int, total: int, words: str) -> None:
        busy.add(words.split(":")[0] if done else "frames")

    result = run(scenario(**changes), run_dir=folder, progress=note, **arguments)
    return result, busy


def test_everything_is_there_afterwards_and_nothing_else(tmp_path: Path) -> None:
    result, _ = go(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    units = {f"units/{slug(name)}.json" for name in ("frozen", "ema", "oracle")}
    files = {"run.json", "frames.npy", "calibration.npy", "schedule.npz", "result.json", "lock"}
    assert names == files | units | {"units"}
    assert without_durations(ReplayResult.load(tmp_path)) == without_durations(result)
    frames = np.load(tmp_path / "frames.npy")
    assert frames.shape == (195, 8, 8, 3) and frames.dtype == np.uint8
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["scenario"]["name"] == "tiny" and set(described["policies"]) == {
        "frozen",
        "ema",
        "oracle",
    }


def test_a_finished_run_is_read_not_repeated(tmp_path: Path) -> None:
    first, _ = go(tmp_path)
    stamp = (tmp_path / "result.json").stat().st_mtime_ns
    again, busy = go(tmp_path)
    assert busy == set() and again.to_json() == first.to_json()
    assert (tmp_path / "result.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"policies": (PolicySpec("frozen", "frozen"), PolicySpec("new"))}, {"new"}),
        ({"name": "renamed"}, set()),
        ({"policies": (PolicySpec("ema"), PolicySpec("oracle", "adabn"))}, {"ema"}),
        ({"frames_per_second": 5.0}, {"frozen", "ema", "oracle"}),
        ({"std": (0.5, 0.5, 0.5)}, {"frozen", "ema", "oracle"}),
        ({"seed": 1}, {"frames", "frozen", "ema", "oracle"}),
    ],
)
def test_only_what_changed_is_run_again(
    tmp_path: Path, changes: dict[str, Any], expected: set[str]
) -> None:
    go(tmp_path)
    result, busy = go(tmp_path, **changes)
    assert busy == expected
    fresh = run(scenario(**changes), model=brightness(), data=tiny_data())
    assert without_durations(result) == without_durations(fresh)
    assert without_durations(tmp_path / "result.json") == without_durations(fresh)


def test_another_model_or_other_data_is_another_run(tmp_path: Path) -> None:
    go(tmp_path)
    model, data = brightness(), tiny_data()
    model.bn.running_mean.add_(0.01)  # type: ignore[union-attr]
    everything = {"frozen", "ema", "oracle"}
    assert go(tmp_path, arguments={"model": model})[1] == everything
    assert go(tmp_path, arguments={"model": model})[1] == set()
    other = LabelledData(data.x, 1 - data.y)
    assert go(tmp_path, arguments={"data": other})[1] == {*everything, "frames"}


def test_a_policy_that_cannot_be_told_from_others_is_run_again(tmp_path: Path) -> None:
    class Local(FrozenPolicy):
        """Does not pickle."""

    for kind, expected in ((FrozenPolicy, set()), (Local, {"frozen"})):
        go(tmp_path, arguments={"policies": [kind()]})
        assert go(tmp_path, arguments={"policies": [kind()]})[1] == expected


def test_damage_is_repaired_or_told(tmp_path: Path) -> None:
    first, _ = go(tmp_path)
    (tmp_path / "units" / f"{slug('ema')}.json").write_text("{")
    again, busy = go(tmp_path)
    assert busy == {"ema"} and without_durations(again) == without_durations(first)
    (tmp_path / "result.json").write_text("{")
    assert without_durations(go(tmp_path)[0]) == without_durations(first)
    (tmp_path / "frames.npy").write_bytes(b"short")
    with pytest.raises(DataError, match=r"the frames kept there cannot be read .* `--fresh`"):
        go(tmp_path)


def test_clearing_takes_away_what_a_run_left_and_nothing_else(tmp_path: Path) -> None:
    go(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory(tmp_path).clear()
    assert {path.name for path in tmp_path.rglob("*")} == {"notes.txt", "lock", "units"}
    assert go(tmp_path)[1] == {"frames", "frozen", "ema", "oracle"}


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path).locked(),
        pytest.raises(ConfigurationError, match="another process is working in this run directory"),
    ):
        go(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be a run directory"):
        go(tmp_path / "file")


def test_names() -> None:
    assert slug("EMA 0.1") != slug("ema 0.1") and slug("../x").startswith("x-")
    assert slug("ß").startswith("policy-")
    assert run_directory_name("Fog / night", "abc") == "fog-night-abc"


# Kills itself, for real, at the n-th call of something; what is left must be good to go on with.
# One process forks all victims, so that PyTorch is imported once.
DRIVER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from streamadapt.replay.runner import run
from tests.unit.replay.tiny import brightness, scenario, tiny_data, without_durations

folder = Path(sys.argv[1])
arguments = {"model": brightness(), "data": tiny_data()}
expected = without_durations(run(scenario(), **arguments))

def victim(path, what, count):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = count
    def strike(*_):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    progress = None
    if what == "progress":
        progress = strike
    else:
        real = getattr(os, what)
        setattr(os, what, lambda *a, **k: (strike(), real(*a, **k))[1])
    run(scenario(), run_dir=path, progress=progress, **arguments)
    os._exit(0)

for what, step in (("fsync", 1), ("replace", 1), ("progress", 27)):
    count, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        path = folder / f"{what}-{count}"
        code = victim(path, what, count)
        run(scenario(), run_dir=path, **arguments)
        assert without_durations(path / "result.json") == expected, (what, count)
        left = [one.name for one in path.rglob("*.partial")]
        assert not left, (what, count, left)
        count += step
    assert code == 0, (what, count, code)
    print(what, count)
"""


def test_a_run_may_be_killed_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()}
    # run, frames, calibration, schedule, three policies, result: each is synced, renamed, and its
    # folder synced; the folder once more, so that no old result is left with a new description.
    assert counts == {"fsync": 18, "replace": 9, "progress": 108}
