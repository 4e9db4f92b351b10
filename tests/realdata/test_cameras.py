"""Cameras on real videos and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamadapt as sa
from benchmarks.models import load_mobilenet_v2
from streamadapt.pipeline import Preprocess
from streamadapt.pipeline.diagnosing import candidates, misread

pytest.importorskip("av")
pytestmark = pytest.mark.realdata


@pytest.mark.slow
@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("normalize=imagenet", None),
        ("normalize=imagenet,channels=BGR", "channels=RGB"),
        ("normalize=half", "normalize=imagenet"),
        ("divisor=1", "normalize=imagenet"),
    ],
)
def test_a_wrong_preprocessing_is_named(
    data_dir: Path, declared: str, expected: str | None
) -> None:
    model = load_mobilenet_v2(data_dir)
    with sa.frames.open(data_dir / "imagenet" / "images") as reader:
        pictures = [frame.data for frame, _ in zip(reader, range(24), strict=False)]
    given = Preprocess.parse(declared)
    found = misread(candidates(model, pictures, declared=given), declared=given)
    assert (None if found is None else found.name) == expected


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [
        ("car-detection.mp4", 377, (432, 768)),
        ("bgs_video.avi", 374, (360, 640)),
        ("bikes.mp4", 250, (272, 640)),
    ],
)
def test_every_frame_of_a_video_comes_once_and_may_be_learned_from(
    data_dir: Path, name: str, frames: int, size: tuple[int, int]
) -> None:
    with sa.frames.open(data_dir / "video" / name) as reader:
        found = [(one.frame_id, one.data.shape[:2], one.rejection) for one in reader]
    assert [number for number, _, _ in found] == list(range(frames))
    assert {shape for _, shape, _ in found} == {size}
    # Encoders repeat a picture where nothing moves; nothing else is held back.
    assert {rejection for _, _, rejection in found} <= {None, "frozen"}
    assert sum(rejection is not None for _, _, rejection in found) < frames // 10
