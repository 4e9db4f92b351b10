"""Images in the layout of published benchmarks, and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.corruptions import corrupt
from streamadapt.replay.published import load_images
from streamadapt.replay.scenario import Domain, Scenario
from streamadapt.replay.stream import Stream


def images(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "fog.npy", images(50))
    np.save(folder / "labels.npy", np.tile(np.arange(10), 5).astype(np.int64))
    return folder


def test_a_severity_of_cifar10c_is_its_fifth_of_the_rows(cifar: Path) -> None:
    for severity in range(1, 6):
        data = load_images(cifar / "fog.npy", severity=severity)
        rows = slice(10 * (severity - 1), 10 * severity)
        np.testing.assert_array_equal(data.x, images(50)[rows])
        assert data.y.tolist() == list(range(10))


def test_imagenetc_folders_load_by_severity(tmp_path: Path) -> None:
    PIL = pytest.importorskip("PIL.Image")
    for severity in (1, 3):
        for number, wordnet in enumerate(("n01440764", "n01443537")):
            folder = tmp_path / "fog" / str(severity) / wordnet
            folder.mkdir(parents=True)
            level = 10 * severity + number
            PIL.new("RGB", (40, 36), (level, level, level)).save(folder / "a_00001.png")
    data = load_images(tmp_path / "fog", severity=3, resize=(16, 16))
    assert data.x.shape == (2, 16, 16, 3)
    assert data.x[:, 0, 0, 0].tolist() == [30, 31]
    assert data.y.tolist() == [0, 1]


def test_a_scenario_streams_published_sets_beside_each_other(cifar: Path) -> None:
    scenario = Scenario(
        "s",
        (
            Domain("fog 2", images="CIFAR-10-C/fog.npy", severity=2),
            Domain("fog 5", 7, images="CIFAR-10-C/fog.npy", severity=5),
        ),
        base=cifar.parent,
        batch_size=4,
    )
    stream = Stream(scenario, data=None)
    assert [(span.corruption, span.severity, span.frames) for span in stream.spans] == [
        ("fog", (2,), 10),
        ("fog", (5,), 7),
    ]
    batches = list(stream)
    shown = np.concatenate([batch.frames for batch in batches])
    ids = np.concatenate([batch.ids for batch in batches])
    np.testing.assert_array_equal(shown[:10], images(50)[10:20][ids[:10]])
    np.testing.assert_array_equal(shown[10:], images(50)[40:50][ids[10:]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "labels.npy").unlink(), r"labels\.npy: no such file"),
        (lambda f: np.save(f / "labels.npy", np.zeros(9, np.int64)), r"\[9\] labels for 50 images"),
        (lambda f: np.save(f / "fog.npy", images(49)), r"n images a severity; got uint8 \[49"),
        (lambda f: np.save(f / "fog.npy", images(50) / 255), r"uint8 \[5 n.*got float64"),
        (lambda f: (f / "fog.npy").write_bytes(b"\x93NUMPY\x01"), r"not a readable \.npy file"),
    ],
)
def test_damaged_sets_get_one_line(cifar: Path, spoil: Any, message: str) -> None:
    spoil(cifar)
    with pytest.raises(DataError, match=message) as caught:
        load_images(cifar / "fog.npy", severity=1)
    assert "\n" not in str(caught.value)


def test_a_video_keeps_its_order_and_takes_labels_from_a_table(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        track = container.add_stream("mpeg4", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            grey = np.full((48, 64, 3), 10 * number + 20, dtype=np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(track.encode())
    (tmp_path / "clip.csv").write_text("frame,label\n0,3\n19,1\n")
    data = load_images(path, severity=1, labels=tmp_path / "clip.csv", resize=(16, 16))
    assert data.x.shape == (20, 16, 16, 3)
    assert data.y.tolist() == [3] + [-1] * 18 + [1]
    assert (np.diff(data.x.astype(int).mean(axis=(1, 2, 3))) > 0).all()

    domain = Domain("clip", images="clip.mp4")
    whole = Scenario("s", (domain,), base=tmp_path, resize=(16, 16), order="dirichlet")
    stream = Stream(whole, data=None)
    assert np.concatenate([batch.ids for batch in stream]).tolist() == list(range(20))

    (tmp_path / "clip.csv").write_text("frame,class\n0,3\n")
    with pytest.raises(DataError, match=r"clip\.csv: the column `label` is missing"):
        load_images(path, severity=1, labels=tmp_path / "clip.csv")
    (tmp_path / "clip.csv").write_text("frame,label\n20,3\n")
    with pytest.raises(DataError, match=r"line 2: there is no frame 20; the video has 20, from 0"):
        load_images(path, severity=1, labels=tmp_path / "clip.csv")
    (tmp_path / "clip.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match="not a readable video"):
        load_images(path, severity=1)


def test_the_library_draws_from_the_place_in_the_stream_alone() -> None:
    pytest.importorskip("imagecorruptions")
    x = images(3)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first, again, other = (
        corrupt(x, "imagecorruptions:snow", severity=3, rng=np.random.default_rng(seed))
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.dtype == np.uint8 and first.shape == x.shape
    with pytest.raises(ConfigurationError, match=r"no corruption `snwo`\. Did you mean `snow`"):
        corrupt(x, "imagecorruptions:snwo", severity=3, rng=np.random.default_rng(0))
