"""Labelled data: what loads, and what a user is told when it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.data import LabelledData, load_data, resize_frames


def pictures(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def save_png(path: Path, shade: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), shade, dtype=np.uint8)).save(path)


def test_npz_comes_back_as_saved(tmp_path: Path) -> None:
    x, y = pictures(3), np.array([2, 0, 1], dtype=np.int32)
    np.savez(tmp_path / "d.npz", x=x, y=y, names=np.array(["a", "b", "c"]))
    data = load_data(tmp_path / "d.npz")
    np.testing.assert_array_equal(data.x, x)
    assert data.y.dtype == np.int64
    assert data.y.tolist() == [2, 0, 1]
    assert data.names == ("a", "b", "c")
    assert len(data) == 3
    assert repr(data) == "LabelledData(x=uint8 [3, 8, 8, 3], classes=3)"


def test_a_file_without_labels_says_so(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=pictures(2), target=np.zeros(2))
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert str(caught.value) == (
        f"{path}: no labels: the file has no array `y` (found: target, x). "
        "Store `x` uint8 [N, H, W, 3] and `y` int64 [N]."
    )


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (pictures(2).astype(np.float32), np.zeros(2, np.int64), r"`x` must be uint8 .*float32"),
        (pictures(2)[..., 0], np.zeros(2, np.int64), r"`x` must be uint8 .*\[2, 8, 8\]"),
        (pictures(2), np.zeros(2), r"`y` must be int64 \[N\], got float64 \[2\]"),
        (pictures(2), np.zeros((2, 1), np.int64), r"`y` must be int64 \[N\]"),
        (pictures(2), np.zeros(3, np.int64), r"There are 2 images and 3 labels"),
        (pictures(0), np.zeros(0, np.int64), r"There are no images"),
        (pictures(2), np.array([0, -2]), r"Labels must not be negative, found -2"),
    ],
)
def test_wrong_arrays_are_refused(
    tmp_path: Path, x: np.ndarray, y: np.ndarray, message: str
) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=x, y=y)
    with pytest.raises(DataError, match=message) as caught:
        load_data(path)
    assert str(caught.value).startswith(str(path))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_data(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"not a readable .npz"):
        load_data(tmp_path / "text.npz")
    np.savez(tmp_path / "whole.npz", x=pictures(20), y=np.zeros(20, np.int64))
    cut = (tmp_path / "whole.npz").read_bytes()[:-400]
    (tmp_path / "cut.npz").write_bytes(cut)
    with pytest.raises(DataError, match=r"not a readable .npz"):
        load_data(tmp_path / "cut.npz")
    np.save(tmp_path / "single.npy", pictures(2))
    with pytest.raises(DataError, match="a single array"):
        load_data(tmp_path / "single.npy")
    np.savez(tmp_path / "object.npz", x=np.array([{}]), y=np.zeros(1, np.int64))
    with pytest.raises(DataError, match=r"not a readable .npz"):
        load_data(tmp_path / "object.npz")
    with pytest.raises(ConfigurationError, match="Unknown built-in data `builtin:cats`"):
        load_data("builtin:cats")


def test_folder_per_class(tmp_path: Path) -> None:
    save_png(tmp_path / "dog" / "1.png", 10)
    save_png(tmp_path / "cat" / "1.png", 20)
    save_png(tmp_path / "cat" / "2.png", 30)
    data = load_data(tmp_path)
    assert data.names == ("cat", "dog")
    assert data.y.tolist() == [0, 0, 1]
    assert data.x[:, 0, 0, 0].tolist() == [20, 30, 10]


def test_folders_named_by_numbers_are_the_class_indices(tmp_path: Path) -> None:
    for label in (10, 2):
        save_png(tmp_path / str(label) / "a.png", label)
    data = load_data(tmp_path)
    assert sorted(data.y.tolist()) == [2, 10]
    assert (data.x[:, 0, 0, 0] == data.y).all()


def test_file_names_as_class_indices(tmp_path: Path) -> None:
    for label in (7, 281):
        save_png(tmp_path / f"{label:04d}.png", label % 256)
    assert load_data(tmp_path).y.tolist() == [7, 281]
    save_png(tmp_path / "holiday.png", 1)
    with pytest.raises(DataError, match=r"no labels: holiday.png is not named by a class index"):
        load_data(tmp_path)


def test_index_file(tmp_path: Path) -> None:
    save_png(tmp_path / "some" / "a.png", 5)
    save_png(tmp_path / "b.png", 6)
    index = tmp_path / "labels.csv"
    index.write_text("file,label\nsome/a.png,3\nb.png,0\n")
    data = load_data(tmp_path)
    assert data.y.tolist() == [3, 0]
    assert data.x[:, 0, 0, 0].tolist() == [5, 6]
    index.write_text("file,label\nsome/a.png,zebra\nb.png,ant\n")
    assert load_data(tmp_path).names == ("ant", "zebra")
    index.write_text("file,label\nsome/a.png,3\nb.png,\n")
    with pytest.raises(DataError, match=r"labels\.csv, line 3: no `label`"):
        load_data(tmp_path)
    index.write_text("file,label\nsome/a.png,3\nabsent.png,1\n")
    with pytest.raises(DataError, match=r"absent\.png: not a readable picture"):
        load_data(tmp_path)


def test_mixed_sizes_need_resize(tmp_path: Path) -> None:
    save_png(tmp_path / "0.png", 5, (8, 8))
    save_png(tmp_path / "1.png", 6, (10, 12))
    with pytest.raises(DataError, match=r"10 x 12 pixels.* 8 x 8\. Set `resize`"):
        load_data(tmp_path)
    assert load_data(tmp_path, resize=(9, 11)).x.shape == (2, 9, 11, 3)


def test_broken_and_missing_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures found"):
        load_data(tmp_path)
    (tmp_path / "0.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0\.jpg: not a readable picture"):
        load_data(tmp_path)


@pytest.mark.parametrize("size", [(24, 24), (5, 13), (8, 8), (3, 3)])
def test_resize_agrees_with_pillow(size: tuple[int, int]) -> None:
    x = pictures(3)
    ours = resize_frames(x, size)
    theirs = [
        np.asarray(Image.fromarray(f).resize(size[::-1], Image.Resampling.BILINEAR)) for f in x
    ]
    np.testing.assert_allclose(ours.astype(int), np.stack(theirs), atol=1)


def test_resize_does_not_depend_on_the_company_of_a_frame() -> None:
    x = pictures(130)
    np.testing.assert_array_equal(resize_frames(x, 20)[100:101], resize_frames(x[100:101], 20))
    with pytest.raises(ConfigurationError, match="`resize` must be at least 1 pixel"):
        resize_frames(x, 0)


def test_builtin_digits_resize() -> None:
    data = load_data("builtin:digits", resize=24)
    assert isinstance(data, LabelledData)
    assert data.x.shape[1:] == (24, 24, 3)
    assert sorted(set(data.y.tolist())) == list(range(10))
