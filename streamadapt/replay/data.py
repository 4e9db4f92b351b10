"""Labelled images from an `.npz` file, from a folder of pictures, or from the package itself."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import ConfigurationError, DataError

BUILTIN_DIGITS = "builtin:digits"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"})
_CHUNK = 64  # images resized at a time: bounds the float copy, not the result


@dataclass(frozen=True, repr=False)
class LabelledData:
    """Images and what they show.

    Attributes:
        x: uint8 `[N, H, W, 3]`, RGB.
        y: int64 `[N]`, class indices from 0; -1 where it is not known.
        names: class names in the order of the indices; empty where they are not known.

    Raises:
        DataError: wrong dtype or shape, no images, negative labels, a label without an image.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.x.dtype != np.uint8 or self.x.ndim != 4 or self.x.shape[-1] != 3:
            raise DataError(
                f"`x` must be uint8 [N, H, W, 3], got {self.x.dtype} {list(self.x.shape)}. "
                "Store 8-bit RGB images with the channels last."
            )
        if self.y.ndim != 1 or self.y.dtype.kind not in "iu":
            raise DataError(
                f"`y` must be int64 [N], got {self.y.dtype} {list(self.y.shape)}. "
                "Store one class index per image."
            )
        if len(self.x) != len(self.y):
            raise DataError(
                f"There are {len(self.x)} images and {len(self.y)} labels. Every image needs one."
            )
        if not len(self.x):
            raise DataError("There are no images. A replay needs at least one.")
        if int(self.y.min()) < -1:
            raise DataError(
                f"Labels must not be negative, found {int(self.y.min())}. Only -1 is allowed: it "
                "marks an image whose class is not known."
            )
        if self.names and len(self.names) <= int(self.y.max()):
            raise DataError(f"There are {len(self.names)} names, labels go up to {self.y.max()}.")
        object.__setattr__(self, "y", self.y.astype(np.int64))

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"LabelledData(x=uint8 {list(self.x.shape)}, classes={int(self.y.max()) + 1})"


def load_data(source: str | Path, *, resize: int | tuple[int, int] | None = None) -> LabelledData:
    """Load labelled images, resized if asked.

    A folder is read in one of three layouts, tried in this order:

    - `labels.csv` with the columns `file` and `label`. Labels are class indices, or class names,
      which are numbered in alphabetical order.
    - a subfolder per class. Names that are all numbers are the class indices; others are
      numbered in alphabetical order.
    - pictures named by their class index, as in `0281.jpg`.

    Args:
        source: an `.npz` with `x` uint8 `[N, H, W, 3]`, `y` int64 `[N]` and optionally `names`;
            a folder (needs Pillow, the extra `streamadapt[replay]`); or `"builtin:digits"`.
        resize: target side, or (height, width), in pixels; bilinear.

    Raises:
        DataError: nothing there, not readable, no labels, or mixed sizes without `resize`.
        ConfigurationError: a folder of pictures and no Pillow; an unknown `builtin:` name.
    """
    if str(source).startswith("builtin:"):
        if source != BUILTIN_DIGITS:
            raise ConfigurationError(
                f"Unknown built-in data `{source}`. Known: {BUILTIN_DIGITS}; "
                "or give an .npz file or a folder of pictures."
            )
        packaged = resources.files("streamadapt.replay").joinpath("assets", "digits.npz")
        with resources.as_file(packaged) as path:
            data = _load_npz(path)
    elif Path(source).is_dir():
        return _load_folder(Path(source), resize=resize)
    elif Path(source).is_file():
        data = _load_npz(Path(source))
    else:
        raise DataError(f"{source}: no such file or folder. Give an .npz file or an image folder.")
    if resize is None:
        return data
    return LabelledData(resize_frames(data.x, resize), data.y, data.names)


def resize_frames(x: NDArray[np.uint8], size: int | tuple[int, int]) -> NDArray[np.uint8]:
    """Resize uint8 `[N, H, W, 3]` bilinearly to `size` pixels; averages when it shrinks."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ConfigurationError(f"`resize` must be at least 1 pixel, got {height} x {width}.")
    if x.shape[1:3] == (height, width):
        return x
    rows = _triangle_weights(x.shape[1], height)  # [height, H]
    columns = _triangle_weights(x.shape[2], width).T  # [W, width]
    out = np.empty((len(x), height, width, 3), dtype=np.uint8)
    for start in range(0, len(x), _CHUNK):
        planes = np.moveaxis(x[start : start + _CHUNK], 3, 1).astype(np.float32)
        resized = rows @ planes @ columns + np.float32(0.5)
        out[start : start + _CHUNK] = np.moveaxis(resized, 1, 3).astype(np.uint8)
    return out


def _triangle_weights(length: int, size: int) -> NDArray[np.float32]:
    # Pixel centres at half integers; the triangle widens with the step when shrinking, so that
    # no source pixel is skipped (as image libraries do).
    scale = length / size
    centre = (np.arange(size) + 0.5) * scale
    offset = (np.arange(length)[None, :] + 0.5 - centre[:, None]) / max(scale, 1.0)
    weights: NDArray[np.float64] = np.clip(1 - np.abs(offset), 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def _load_npz(path: Path) -> LabelledData:
    try:
        # Opened here: np.load leaves the file open when the archive is cut short.
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise DataError(f"{path}: a single array, not an .npz archive with `x` and `y`.")
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path}: not a readable .npz file (damaged, or something else).")
            file.seek(0)
            x, y, names = _read_arrays(file, path)
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}).") from error
    try:
        return LabelledData(x, y, names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_arrays(
    file: IO[bytes], path: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    with np.load(file, allow_pickle=False) as archive:
        found = sorted(archive.files)
        for key, content in (("x", "images"), ("y", "labels")):
            if key not in found:
                raise DataError(
                    f"{path}: no {content}: the file has no array `{key}` "
                    f"(found: {', '.join(found) or 'nothing'}). "
                    "Store `x` uint8 [N, H, W, 3] and `y` int64 [N]."
                )
        names = tuple(str(name) for name in archive["names"]) if "names" in found else ()
        return archive["x"], archive["y"], names


def _load_folder(root: Path, *, resize: int | tuple[int, int] | None) -> LabelledData:
    try:
        import PIL.Image
    except ImportError as error:
        raise ConfigurationError(
            f"{root}: reading pictures needs Pillow, which is not installed. "
            "Install it with `pip install streamadapt[replay]`, or give an .npz file."
        ) from error
    files, labels, names = _find_pictures(root)
    frames: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            with PIL.Image.open(file) as picture:
                frame = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{file}: not a readable picture ({error}).") from error
        if resize is not None:
            frame = resize_frames(frame[None], resize)[0]
        if frames and frame.shape != frames[0].shape:
            raise DataError(
                f"{file}: {frame.shape[0]} x {frame.shape[1]} pixels, the pictures before it have "
                f"{frames[0].shape[0]} x {frames[0].shape[1]}. Set `resize` to bring all of them "
                "to one size."
            )
        frames.append(frame)
    return LabelledData(np.stack(frames), np.asarray(labels, dtype=np.int64), names)


def _find_pictures(root: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    index = root / "labels.csv"
    if index.is_file():
        return _read_index(index)
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    by_folder = [(file, folder.name) for folder in folders for file in _pictures(folder)]
    if by_folder:
        labels, names = _class_indices([label for _, label in by_folder])
        return [file for file, _ in by_folder], labels, names
    files = list(_pictures(root))
    if not files:
        raise DataError(
            f"{root}: no pictures found. Put them in a folder per class, name them by their class "
            "index, or list them in labels.csv with the columns `file` and `label`."
        )
    unlabelled = [file.name for file in files if not _is_index(file.stem)]
    if unlabelled:
        raise DataError(
            f"{root}: no labels: {unlabelled[0]} is not named by a class index. Put the pictures "
            "in a folder per class, or list them in labels.csv with the columns `file` and `label`."
        )
    return files, [int(file.stem) for file in files], ()


def _read_index(index: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    try:
        with index.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{index}: not a readable CSV file ({error}).") from error
    if not rows:
        raise DataError(f"{index}: no rows. List the pictures in the columns `file` and `label`.")
    files: list[Path] = []
    labels: list[str] = []
    for line, row in enumerate(rows, start=2):
        file, label = row.get("file"), row.get("label")
        if not file or not label:
            raise DataError(
                f"{index}, line {line}: no `{'label' if file else 'file'}`. "
                "The columns must be named `file` and `label`."
            )
        files.append(index.parent / file.strip())
        labels.append(label.strip())
    indices, names = _class_indices(labels)
    return files, indices, names


def _pictures(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
            yield path


def _class_indices(labels: list[str]) -> tuple[list[int], tuple[str, ...]]:
    if all(_is_index(label) for label in labels):
        return [int(label) for label in labels], ()
    names = sorted(set(labels))
    places = {name: place for place, name in enumerate(names)}
    return [places[label] for label in labels], tuple(names)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit()
