"""Frames in a folder: which, how many, and never more."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import streamadapt.drift.export as export
from streamadapt.drift import FrameExport
from streamadapt.errors import ConfigurationError


def numbered(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(count).reshape(-1, 1, 1, 1).expand(count, 3, 4, 5).to(dtype)


def read(path: Path) -> tuple[Tensor, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("frames"), file.metadata()


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_says_what_it_shows(tmp_path: Path) -> None:
    path = FrameExport(tmp_path / "a" / "b").save("Front door", 1234, "early", numbered(3))
    assert path is not None and written(tmp_path / "a" / "b") == [path.name]
    frames, metadata = read(path)
    assert torch.equal(frames, numbered(3))
    time = metadata.pop("time")
    assert metadata == {"stream": "Front door", "step": "1234", "by": "early"}
    assert len(time) == len("2024-01-01T00:00:00.000+00:00") and time.endswith("+00:00")
    assert path.name.startswith("front-door-")
    assert "-step1234-early-" in path.name


@pytest.mark.parametrize(
    ("count", "most", "kept"),
    [
        (9, 3, [0, 4, 8]),
        (16, 16, list(range(16))),
        (17, 16, [*range(15), 16]),
        (100, 5, [0, 24, 49, 74, 99]),
        (2, 16, [0, 1]),
        (7, 1, [0]),
        (1, 1, [0]),
    ],
)
def test_frames_are_spaced_evenly_from_the_first_to_the_last(
    count: int, most: int, kept: list[int], tmp_path: Path
) -> None:
    path = FrameExport(tmp_path, frames=most).save("a", 0, "late", numbered(count))
    assert path is not None
    assert read(path)[0][:, 0, 0, 0].tolist() == kept


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool]
)
def test_values_are_as_they_came(dtype: torch.dtype, tmp_path: Path) -> None:
    frames = numbered(2, dtype).contiguous(memory_format=torch.channels_last)
    path = FrameExport(tmp_path).save("a", 0, "late", frames)
    assert path is not None
    found, _ = read(path)
    assert found.dtype == dtype and torch.equal(found, frames)


def test_gradients_inference_mode_and_strides_are_no_matter(tmp_path: Path) -> None:
    whole = torch.rand(4, 3, 8, 8)
    with torch.inference_mode():
        inside = whole + 0.0
        first = FrameExport(tmp_path).save("a", 0, "late", inside)
    strided = whole.requires_grad_()[::2, :, 1:, ::3]
    second = FrameExport(tmp_path).save("a", 1, "late", strided)
    assert first is not None and second is not None
    assert torch.equal(read(first)[0], whole.detach())
    assert torch.equal(read(second)[0], strided.detach())


@pytest.mark.parametrize(
    "frames",
    [
        None,
        [torch.zeros(3, 4, 4)],
        torch.zeros(3, 4, 4),
        torch.zeros(1, 2, 3, 4, 4),
        torch.zeros(0, 3, 4, 4),
        torch.zeros(2, 3, 4, 4).to_sparse(),
        torch.zeros(2, 3, 4, 4, device="meta"),
        torch.zeros(2, 3, 4, 4, dtype=torch.complex128),
    ],
    ids=["none", "list", "3-d", "5-d", "empty", "sparse", "meta", "complex"],
)
def test_what_is_no_batch_of_frames_is_passed_over(frames: Any, tmp_path: Path) -> None:
    assert FrameExport(tmp_path / "x").save("a", 0, "late", frames) is None
    assert not (tmp_path / "x").exists()


def test_there_are_never_more_files_than_there_may_be(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("of somebody else")
    (tmp_path / "model.safetensors").write_bytes(b"of somebody else")
    first = FrameExport(tmp_path, files=3)
    paths = [first.save("a", step % 2, "late", numbered(1)) for step in range(2)]
    second = FrameExport(tmp_path, files=3)  # another process, with steps from 0 again
    paths += [second.save("a", 0, "late", numbered(1)) for _ in range(3)]
    assert [path is None for path in paths] == [False] * 3 + [True] * 2
    assert len(set(paths[:3])) == 3
    assert len(written(tmp_path)) == 5
    assert paths[0] is not None
    paths[0].unlink()
    assert second.save("a", 0, "late", numbered(1)) is not None


NAMES = ["", "..", "../../etc/passwd", "a/b\\c:d*e?", "Übergang 7", "門", "\ud800", "x" * 1000]
NAMES += ["a\n", "a\0b", "CON", "-rf", ".hidden", ("cam", 3), 7, None, 2.5]


@pytest.mark.parametrize("stream", NAMES, ids=ascii)
def test_any_stream_has_a_safe_name(stream: Any, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    exporting = FrameExport(folder, files=2)
    path = exporting.save(stream, 0, "../late\n", numbered(1))
    assert path is not None and path.parent == folder and path.is_file()
    assert written(tmp_path) == ["frames"] and written(folder) == [path.name]
    assert path.name.isascii() and len(path.name) < 128
    assert not set(path.name) - set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert path.name[0] not in "-."
    assert exporting.save(stream, 1, "late", numbered(1)) is not None
    assert exporting.save(stream, 2, "late", numbered(1)) is None  # it knows its own names


def test_streams_whose_names_look_alike_can_be_told_apart(tmp_path: Path) -> None:
    exporting = FrameExport(tmp_path)
    first = exporting.save("cam 1", 0, "late", numbered(1))
    other = exporting.save("cam/1", 0, "late", numbered(1))
    again = exporting.save("cam 1", 5, "late", numbered(1))
    assert first is not None and other is not None and again is not None
    parts = [path.name.split("-step")[0] for path in (first, other, again)]
    assert parts[0] == parts[2] != parts[1]


def test_a_full_disk_reaches_the_caller_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(export.os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            FrameExport(tmp_path).save("a", 0, "late", numbered(1))
    assert written(tmp_path) == []
    assert FrameExport(tmp_path).save("a", 0, "late", numbered(1)) is not None


def test_a_folder_that_cannot_be_is_the_caller_s(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        FrameExport(tmp_path / "file").save("a", 0, "late", numbered(1))
    with pytest.raises(OSError):
        FrameExport(tmp_path / "file" / "below").save("a", 0, "late", numbered(1))


def test_a_folder_that_vanishes_under_it_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "x"
    exporting = FrameExport(folder)
    monkeypatch.setattr(exporting, "_count", lambda: folder.rmdir() or 0)
    with pytest.raises(OSError):
        exporting.save("a", 0, "late", numbered(1))


@pytest.mark.parametrize("name", ["frames", "files"])
@pytest.mark.parametrize("value", [0, -1, True, 2.5, None])
def test_numbers_are_whole_ones_from_1(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FrameExport(tmp_path, **{name: value})
    assert str(caught.value) == f"`{name}` must be a whole number from 1, got {value!r}."


@pytest.mark.parametrize("folder", [None, 3, ""])
def test_a_folder_is_a_path(folder: Any) -> None:
    with pytest.raises(ConfigurationError, match="`folder` must be a path"):
        FrameExport(folder)


def test_it_says_what_it_is() -> None:
    assert repr(FrameExport("x", frames=4)) == "FrameExport('x', frames=4, files=64)"
