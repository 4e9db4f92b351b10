"""What sinks write of a result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.frames import Frame
from streamadapt.pipeline import AnnotatedVideoSink, JsonLinesSink, Latency, Reading, Result
from streamadapt.pipeline.annotating import annotated

av = pytest.importorskip("av")
READING = Reading(drift=0.25, phase="resting", action="adapting")


def result(output: object, *, streams: tuple[str, ...] = ("a", "b"), index: int = 0) -> Result:
    picture = np.full((40, 60, 3), 90, np.uint8)
    frames = tuple(
        Frame(
            data=picture,
            stream_id=stream,
            frame_id=index,
            pts_seconds=0.04 * index,
            wallclock=1e9,
            arrived=0.0,
            is_live=True,
        )
        for stream in streams
    )
    readings = dict.fromkeys(streams, READING)
    return Result(output, frames, readings, "updated", Latency(0.1, 0.2, 0.3, 0.4, 0.5))


def lines(path: Path, output: object) -> list[dict[str, object]]:
    sink = JsonLinesSink(path)
    sink.write(result(output))
    sink.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_a_frame(tmp_path: Path) -> None:
    scores = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    first, second = lines(tmp_path / "out.jsonl", scores)
    assert (first["stream"], second["stream"]) == ("a", "b")
    assert first["output"][0] == {  # type: ignore[index]
        "class": 1,
        "probability": round(float(scores[0].softmax(0)[1]), 4),
    }
    assert second["output"][0]["class"] == 0  # type: ignore[index]
    assert first["drift"] == 0.25 and first["phase"] == "resting" and first["batch"] == 2
    assert first["seconds"]["queue"] == 0.2  # type: ignore[index]
    assert len(lines(tmp_path / "out.jsonl", scores)) == 4  # added to


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (torch.zeros(2, 3, 4, 5), {"shape": [3, 4, 5], "dtype": "float32"}),
        (torch.tensor([[1.5], [2.5]]), 1.5),
        (torch.tensor([[float("nan")], [2.5]]), None),
        ([{"boxes": torch.zeros(4, 4), "n": 2}, {"boxes": torch.zeros(1, 4), "n": 1}], None),
    ],
)
def test_other_outputs_are_described(tmp_path: Path, output: object, wanted: object) -> None:
    first, second = lines(tmp_path / "out.jsonl", output)
    if isinstance(output, list):  # one entry a frame, as detectors answer
        assert first["output"] == {"boxes": {"shape": [4, 4], "dtype": "float32"}, "n": 2}
        assert second["output"]["n"] == 1  # type: ignore[index]
    else:
        assert first["output"] == wanted


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        JsonLinesSink(tmp_path / "no" / "folder.jsonl")


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]


def test_a_video_a_camera(tmp_path: Path) -> None:
    sink = AnnotatedVideoSink(tmp_path / "out", labels=("cat", "dog"))
    for index in range(5):
        sink.write(result(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), index=index))
    sink.close()
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["a.mp4", "b.mp4"]
    frames = decoded(tmp_path / "out" / "a.mp4")
    assert len(frames) == 5 and frames[0].shape == (66, 60, 3)
    with av.open(str(tmp_path / "out" / "a.mp4")) as container:
        stamps = [float(one.pts * one.time_base) for one in container.decode(video=0)]
    assert np.diff(stamps) == pytest.approx(0.04, abs=1e-3)


def test_one_camera_in_one_file_and_another_beside_it(tmp_path: Path) -> None:
    sink = AnnotatedVideoSink(tmp_path / "new" / "out.mp4")
    sink.write(result(torch.zeros(1, 3), streams=("rtsp://u:pa55@h/x",)))
    sink.write(result(torch.zeros(1, 3), streams=("b/c",)))
    sink.close()
    found = sorted(one.name for one in (tmp_path / "new").iterdir())
    assert found == ["out-b_c.mp4", "out.mp4"]


def test_what_is_drawn() -> None:
    grey = np.full((80, 120, 3), 90, np.uint8)
    plain = annotated(grey, None, READING, title="a")
    assert plain.shape == (106, 120, 3) and (plain[:80] == 90).all()
    scores = torch.zeros(3, 8, 12)
    scores[2, :4] = 1.0  # the upper half is class 2, the lower one 0
    mask = annotated(grey, scores, READING)
    assert (mask[44:80] == 90).all() and not (mask[:36] == 90).any(axis=2).all()
    assert (annotated(grey, {"aux": None, "out": scores}, READING) == mask).all()
    boxes = {"boxes": torch.tensor([[10.0, 20.0, 50.0, 60.0]]), "labels": torch.tensor([1])}
    boxed = annotated(grey, boxes, READING)
    assert (annotated(grey, {"logits": torch.zeros(9, 3), **boxes}, READING) == boxed).all()
    assert (boxed[40, 10] != 90).any() and (boxed[40, 30] == 90).all()
    for action in ("held", "shrunk", "rolled_back", "pinned", "shadow", "frozen", "killed"):
        other = annotated(grey, None, Reading(None, None, action))  # type: ignore[arg-type]
        assert (other[80:] != plain[80:]).any()


def test_only_pictures_can_be_drawn_over(tmp_path: Path) -> None:
    sink = AnnotatedVideoSink(tmp_path / "out.mp4")
    wrong = result(torch.zeros(1, 3), streams=("a",))
    object.__setattr__(wrong.frames[0], "data", torch.zeros(3, 8, 8))
    with pytest.raises(ConfigurationError, match="uint8"):
        sink.write(wrong)
    sink.close()
