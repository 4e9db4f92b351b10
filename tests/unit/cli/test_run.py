"""`streamadapt run`: what it writes, says and returns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamadapt.cli import main
from streamadapt.cli.run import _names
from tests.models import residual

av = pytest.importorskip("av")
REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = "tests.models:residual"


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command changes how the process keeps memory, which is not wanted here."""
    for name in ("keep_freed_memory", "give_back_freed_memory"):
        monkeypatch.setattr(f"streamadapt.replay.one_thread.{name}", lambda **_: None)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    monkeypatch.chdir(REPOSITORY)


def video(path: Path, *, frames: int = 12) -> Path:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(frames):
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def run(*arguments: object) -> int:
    return main(["run", *map(str, arguments)])


def test_a_video_becomes_lines_a_video_and_a_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = video(tmp_path / "dock.mp4")
    given = [source, "--model", MODEL, "--preprocess", "resize=24", "--max-batch", 4]
    given += ["--state-dir", tmp_path / "state", "--out", tmp_path / "out.mp4", "--out", "-"]
    assert run(*given) == 0
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(12))
    assert {line["stream"] for line in lines} == {"dock"}
    assert len(lines[0]["output"]) == 5
    assert "12 frames answered, 0 dropped" in told.err
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    assert run(*given) == 0
    assert main(["snapshot", "list", str(tmp_path / "state" / "adapt")]) == 0
    assert "generations 1 to 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.mp4", "--model", MODEL], 1, "nowhere.mp4: no such file"),
        (["gopher://u:pa55@host/", "--model", MODEL], 2, "unknown kind of URL"),
        (["x.mp4", "--model", "no.such:model"], 2, "cannot import `no.such`"),
        (["x.mp4", "--model", "tests.models:nothing"], 2, "has no `nothing`"),
        (["x.mp4"], 2, "Name the model"),
        (["--model", MODEL], 2, "Name a source"),
        (["x.mp4", "--model", MODEL, "--preprocess", "resize=big"], 2, "no step of preprocessing"),
        (["x.mp4", "--model", MODEL, "--out", "x.avi"], 2, "nothing writes .avi"),
        (["x.mp4", "--model", MODEL, "--labels", "nowhere"], 1, "cannot be read"),
        (["x.mp4", "--model", MODEL, "--max-batch", "0"], 2, "`max_batch`"),
        (["x.mp4", "--model", MODEL, "--threads", "0"], 2, "--threads"),
        (["--config", "nowhere.toml"], 2, "cannot be read"),
        (["x.mp4", "--config", "fleet.toml"], 2, "in the file"),
        (["rtsp://u:pa55@127.0.0.1:9/x", "--model", MODEL, "--give-up", "0"], 1, "Given up"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    told = capsys.readouterr().err
    assert words in told.splitlines()[-1] and "Traceback" not in told and "pa55" not in told


def test_one_bad_source_leaves_the_others_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = video(tmp_path / "dock.mp4")
    assert run(source, tmp_path / "nowhere.mp4", "--model", MODEL, "--out", "-") == 1
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 12
    assert told.err.splitlines()[-1].startswith("streamadapt: ")


def test_shadow_answers_as_the_source_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = video(tmp_path / "dock.mp4")
    assert run(source, "--model", MODEL, "--shadow", "--max-batch", 1, "--out", "-") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["action"] for line in lines} == {"shadow"}
    import torch

    import streamadapt as sa
    from streamadapt.pipeline import Preprocess

    model, prepare = residual(), Preprocess()
    with torch.inference_mode():
        for frame, line in zip(sa.frames.open(source), lines, strict=True):
            best = int(model(prepare(frame.data).unsqueeze(0)).argmax())
            assert line["output"][0]["class"] == best


def test_names_of_cameras() -> None:
    sources = ["rtsp://u:p@10.0.0.7/live", "a/dock.mp4", "b/dock.mkv", "/dev/video0"]
    assert _names(sources) == ["10.0.0.7/live", "dock", "dock (2)", "video0"]


FLEET = """
model = "{model}"
metrics_port = 0
kill_file = "kill"
[preprocess]
resize = 24
[[camera]]
name = "a"
url = "a.mp4"
realtime = true
loop = true
"""
SECOND = """
[[camera]]
name = "b"
url = "{url}"
realtime = true
loop = true
"""


class Running:
    """The command in a process of its own, and what it says."""

    def __init__(self, *arguments: object) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamadapt", "run", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.lines.extend(line.rstrip() for line in self._process.stderr)

    def until(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < end and self._process.poll() is None, self.lines
            time.sleep(0.05)

    def says(self, words: str) -> bool:
        return any(words in line for line in list(self.lines))

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        self.send(signal.SIGTERM)
        code = self._process.wait(30)
        self._thread.join(10)
        assert self._process.stderr is not None
        self._process.stderr.close()
        return code


@pytest.mark.slow
def test_a_fleet_is_changed_while_it_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        video(tmp_path / f"{name}.mp4")
    config = tmp_path / "fleet.toml"
    config.write_text(FLEET.format(model=MODEL))
    out = tmp_path / "out.jsonl"
    running = Running("--config", config, "--out", out)

    def rows() -> list[dict[str, object]]:
        text = out.read_text() if out.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def seen(name: str, since: int = 0) -> int:
        return sum(row["stream"] == name for row in rows()[since:])

    running.until(lambda: seen("a") > 5)
    url = next(line.split()[-1] for line in running.lines if "metrics at" in line)
    config.write_text(FLEET.format(model=MODEL) + SECOND.format(url="b.mp4"))
    running.send(signal.SIGHUP)
    running.until(lambda: seen("b") > 5)
    metrics = urllib.request.urlopen(url, timeout=10).read().decode()
    assert 'streamadapt_camera_state{state="running",stream="b"} 1.0' in metrics
    assert 'streamadapt_camera_frames_total{outcome="delivered",stream="a"}' in metrics

    (tmp_path / "kill").touch()
    running.until(lambda: rows()[-1]["action"] == "killed")
    (tmp_path / "kill").unlink()
    running.until(lambda: rows()[-1]["action"] == "adapting")

    config.write_text(FLEET.format(model=MODEL) + SECOND.format(url="b.mp4") + "oops")
    running.send(signal.SIGHUP)
    running.until(lambda: running.says("not reloaded"))
    config.write_text(FLEET.format(model=MODEL) + SECOND.format(url="nowhere.mp4"))
    running.send(signal.SIGHUP)
    running.until(lambda: running.says("b: failed"))
    since = len(rows())
    running.until(lambda: seen("a", since) > 5)
    config.write_text(FLEET.format(model=MODEL))
    running.send(signal.SIGHUP)
    running.until(lambda: running.says("reloaded: b: removed"))
    since = len(rows())
    running.until(lambda: seen("a", since) > 5)
    assert seen("b", since) == 0
    order = [row["frame"] for row in rows() if row["stream"] == "a"]
    assert order == sorted(order)  # one reader all along
    assert running.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_state_is_saved(tmp_path: Path, number: int) -> None:
    source, out = video(tmp_path / "a.mp4"), tmp_path / "out.jsonl"
    running = Running(
        source, "--model", MODEL, "--loop", "--realtime", "--state-dir", tmp_path, "--out", out
    )
    running.until(lambda: out.exists() and len(out.read_text().splitlines()) > 20)
    running.send(number)
    assert running._process.wait(30) == 0
    running._thread.join(10)
    assert list((tmp_path / "adapt" / "streams").rglob("*.safetensors"))
    assert running.says("frames answered")
    assert running._process.stderr is not None
    running._process.stderr.close()
