"""What can be opened, and what is said of what cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import streamadapt as sa
from streamadapt.errors import ConfigurationError
from streamadapt.frames import SourceError

av = pytest.importorskip("av")


def video(
    path: Path, *, frames: int = 20, size: tuple[int, int] = (48, 64), rate: int = 25
) -> Path:
    """A small H.264 file of a bright square that moves."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            picture = np.zeros((*size, 3), np.uint8)
            picture[8:24, index : index + 16] = 210
            picture[..., 2] += np.uint8(40)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_video(tmp_path: Path) -> None:
    path = video(tmp_path / "dock 1.mp4", rate=10)
    with sa.frames.open(path) as reader:
        frames = list(reader)
    assert len(frames) == 20 and reader.stream_id == "dock 1"
    first = frames[0].data
    assert first.shape == (48, 64, 3) and first.dtype == np.uint8
    assert first[16, 8].min() > 190 and first[40, 40, 2] > 20 and first[40, 40, 0] < 20
    assert np.diff([one.pts_seconds for one in frames]) == pytest.approx(0.1)
    with sa.frames.open(path, fps=50) as reader:
        assert np.diff([one.pts_seconds for one in reader]) == pytest.approx(0.02)
    assert not any(one.is_live for one in frames)
    assert all(one.decode_seconds > 0 for one in frames)
    assert sa.frames.open(path.as_uri()).get(timeout=10) is not None


@pytest.mark.parametrize("size", [(48, 64), (38, 50), (36, 192)])
def test_pictures_are_the_decoded_ones_and_stay(tmp_path: Path, size: tuple[int, int]) -> None:
    """Whatever the width, and however many come after."""
    path = video(tmp_path / "one.mp4", size=size)
    with av.open(str(path)) as container:
        wanted = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
    for realtime in (False, True):
        with sa.frames.open(path, realtime=realtime, policy="every", capacity=32) as reader:
            shown = [one.data for one in reader]
        assert len(shown) == len(wanted) == 20
        for one, other in zip(shown, wanted, strict=True):
            assert np.array_equal(one, other)
            assert one.flags.writeable and one.flags.c_contiguous


def test_pictures_of_a_folder_in_natural_order(tmp_path: Path) -> None:
    from PIL import Image

    for index in (10, 9, 1):
        Image.new("RGB", (8, 6), (index, 0, 0)).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    with sa.frames.open(tmp_path, fps=2) as reader:
        frames = list(reader)
    assert [int(one.data[0, 0, 0]) for one in frames] == [1, 9, 10]
    assert [one.pts_seconds for one in frames] == [0.0, 0.5, 1.0]


def test_arrays_tensors_and_iterables() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    for source in (array, torch.from_numpy(array), list(array), iter(array), (a for a in array)):
        frames = list(sa.frames.open(source, fps=10))
        assert [one.pts_seconds for one in frames] == pytest.approx([0, 0.1, 0.2])
        assert all(
            np.array_equal(np.asarray(a.data), b) for a, b in zip(frames, array, strict=True)
        )
    frames = list(sa.frames.open(array))
    again = list(sa.frames.open(iter(frames), stream_id="again"))
    assert [one.stream_id for one in again] == ["again"] * 3


class Capture:
    """As OpenCV's."""

    def __init__(self, pictures: list[np.ndarray]) -> None:
        self.left, self.released = list(pictures), False

    def isOpened(self) -> bool:
        return bool(self.left)

    def read(self) -> tuple[bool, np.ndarray | None]:
        return (True, self.left.pop(0)) if self.left else (False, None)

    def get(self, what: int) -> float:
        assert what == 0  # CAP_PROP_POS_MSEC
        self.position = getattr(self, "position", -100.0) + 100.0
        return self.position

    def release(self) -> None:
        self.released = True


def test_opencv_captures_become_rgb() -> None:
    bgr = np.zeros((4, 4, 3), np.uint8)
    bgr[..., 0] = 200
    capture = Capture([bgr])
    (frame,) = list(sa.frames.open(capture))
    assert frame.data[0, 0].tolist() == [0, 0, 200] and capture.released
    frames = list(sa.frames.open(Capture([bgr, bgr, bgr])))
    assert [one.pts_seconds for one in frames] == pytest.approx([0, 0.1, 0.2])
    frames = list(sa.frames.open(Capture([bgr, bgr, bgr]), fps=5))
    assert [one.pts_seconds for one in frames] == pytest.approx([0, 0.2, 0.4])
    made = []

    def make() -> Capture:
        made.append(Capture([bgr]))
        return made[-1]

    quick = sa.frames.Backoff(0.001, 0.002)
    with sa.frames.open(make, backoff=quick) as reader:
        assert all(reader.get(timeout=5) for _ in range(3))
    assert len(made) >= 3


@pytest.mark.parametrize("name", ["nowhere.mp4", "empty.mp4", "text.mp4", "audio.wav", "cut.mp4"])
def test_files_that_are_no_video(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "empty.mp4":
        path.touch()
    elif name == "text.mp4":
        path.write_text("this is no video\n" * 100)
    elif name == "cut.mp4":  # the index is at its end
        path.write_bytes(video(tmp_path / "whole.mp4").read_bytes()[:600])
    elif name == "audio.wav":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
    reader = sa.frames.open(path)
    with pytest.raises(SourceError) as caught:
        reader.get(timeout=10)
    text = str(caught.value)
    assert name in text and "\n" not in text
    assert reader.status.state == "failed"


def test_a_codec_that_nothing_here_decodes(tmp_path: Path) -> None:
    known = video(tmp_path / "known.mkv").read_bytes()
    path = tmp_path / "unknown.mkv"
    path.write_bytes(known.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    with pytest.raises(SourceError, match=r"unknown\.mkv: nothing here decodes its video"):
        sa.frames.open(path).get(timeout=10)


def test_a_truncated_video_gives_what_there_is(tmp_path: Path) -> None:
    whole = video(tmp_path / "whole.mkv", frames=200).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    frames = list(sa.frames.open(path))
    assert 20 < len(frames) < 200


def test_a_loss_spoils_frames_up_to_the_next_key_frame(tmp_path: Path) -> None:
    path = tmp_path / "lossy.ts"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.options = {"g": "10", "bf": "0"}
        for _ in range(60):
            noise = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    middle = len(data) // 188 // 2 * 188
    path.write_bytes(data[:middle] + data[middle + 5 * 188 :])  # five packets are lost
    frames = list(sa.frames.open(path))
    corrupt = [one.frame_id for one in frames if one.rejection == "corrupt"]
    assert len(frames) == 60 and 0 < len(corrupt) <= 10
    first = corrupt[0]
    assert corrupt == list(range(first, (first // 10 + 1) * 10))


def test_another_size_and_pixel_format_in_the_middle(tmp_path: Path) -> None:
    parts = []
    for form, size in (("yuv420p", (48, 64)), ("yuv444p", (80, 96))):
        path = tmp_path / f"{form}.ts"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            (stream.height, stream.width), stream.pix_fmt = size, form
            stream.options = {"bf": "0"}
            for index in range(20):
                picture = np.full((*size, 3), 60 + 5 * index, np.uint8)
                picture[:, ::2] += np.uint8(40)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        parts.append(path.read_bytes())
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    frames = list(sa.frames.open(path))
    shapes = [one.data.shape for one in frames]
    assert shapes.count((48, 64, 3)) == 20 and shapes.count((80, 96, 3)) >= 18
    changed = shapes.index((80, 96, 3))
    assert frames[changed].discontinuity
    stamps = [one.pts_seconds for one in frames]
    assert min(np.diff(stamps)) >= 0.0 and stamps[-1] < 2.0
    assert abs(float(frames[-1].data.mean()) - (60 + 5 * 19 + 20)) < 8


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("rtsp:///live", {}, "no host"),
        ("gopher://host/", {}, "unknown kind of URL"),
        (3.5, {}, "no source of frames"),
        (None, {}, "no source of frames"),
        ("a.mp4", {"policy": "newest"}, "policy"),
        ("a.mp4", {"read_seconds": 0.0}, "read_seconds"),
        ("a.mp4", {"fps": -1}, "fps"),
        ("rtsp://host/live", {"loop": True}, "live"),
    ],
)
def test_wrong_arguments(source: object, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        sa.frames.open(source, **options)  # type: ignore[arg-type]


def test_a_camera_that_is_not_there_is_tried_again_within_its_time_limit() -> None:
    quick = sa.frames.Backoff(0.01, 0.02)
    with sa.frames.open("rtsp://u:pa55@127.0.0.1:9/live", backoff=quick) as reader:
        assert reader.get(timeout=1.0) is None
        status = reader.status
    assert status.state == "connecting" and status.attempts > 1
    assert "pa55" not in f"{status}"
