"""Images in the layout of published benchmarks, and videos: what a domain's `images` may name.

- CIFAR-10-C, CIFAR-100-C: `fog.npy`, uint8 `[5 n, 32, 32, 3]`, the severities one after the other,
  with `labels.npy` beside it. Only the severity that is asked for is read.
- ImageNet-C: a folder `fog` with the severities `1` to `5`, in each a folder per class. Classes are
  numbered in alphabetical order of the folders' names, which for all 1,000 WordNet names is the
  usual order; for some of them, give `labels.csv` as in `load_data`.
- a video (the extra `streamadapt[video]`): its frames in order. Labels come from a CSV file with
  the columns `frame` and `label`; where there are none the label is -1, not known.
- an `.npz` or a folder of pictures, as in `load_data`.

Reference:
    Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", arXiv 1903.12261.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import ConfigurationError, DataError, one_line
from streamadapt.replay.corruptions import SEVERITIES
from streamadapt.replay.data import LabelledData, load_data, resize_frames

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"})
LABELS_FILE = "labels.npy"


def load_images(
    path: Path,
    *,
    severity: int,
    labels: Path | None = None,
    resize: tuple[int, int] | None = None,
) -> LabelledData:
    """The images of a domain.

    Args:
        path: as above.
        severity: 1 to 5, for published sets.
        labels: of a video.
        resize: (height, width) in pixels.

    Raises:
        DataError: nothing there, or not in one of these layouts.
        ConfigurationError: what it needs is not installed.
    """
    if is_video(path):
        return _load_video(path, labels, resize)
    if labels is not None:
        raise ConfigurationError(f"{path}: `labels` are for videos; other images have their own.")
    if path.suffix == ".npy":
        data = _load_published_array(path, severity)
        if resize is None:
            return data
        return LabelledData(resize_frames(data.x, resize), data.y)
    chosen = path / str(severity)
    if path.is_dir() and chosen.is_dir() and any((path / str(s)).is_dir() for s in SEVERITIES):
        return load_data(chosen, resize=resize)
    return load_data(path, resize=resize)


def is_video(path: Path) -> bool:
    """Whether a name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _load_published_array(path: Path, severity: int) -> LabelledData:
    x = _open_array(path)
    y = _open_array(path.with_name(LABELS_FILE))
    if x.ndim != 4 or x.shape[-1] != 3 or x.dtype != np.uint8 or len(x) % len(SEVERITIES):
        raise DataError(
            f"{path}: uint8 [5 n, H, W, 3] is expected, n images a severity; got {x.dtype} "
            f"{list(x.shape)}."
        )
    if y.shape != (len(x),):
        raise DataError(
            f"{path.with_name(LABELS_FILE)}: {list(y.shape)} labels for {len(x)} images."
        )
    each = len(x) // len(SEVERITIES)
    rows = slice(each * (severity - 1), each * severity)
    try:
        return LabelledData(np.ascontiguousarray(x[rows]), np.ascontiguousarray(y[rows]))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _open_array(path: Path) -> NDArray[np.generic]:
    if not path.is_file():
        raise DataError(f"{path}: no such file. A published set has {LABELS_FILE} beside it.")
    try:
        found: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error}).") from error
    return found


def _load_video(path: Path, labels: Path | None, resize: tuple[int, int] | None) -> LabelledData:
    try:
        import av
    except ImportError as error:
        raise ConfigurationError(
            f"{path}: reading a video needs PyAV, which is not installed. Install it with "
            "`pip install streamadapt[video]`."
        ) from error
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    frames: list[NDArray[np.uint8]] = []
    try:
        with av.open(str(path)) as container:
            for picture in container.decode(video=0):
                frame = picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                if resize is not None:
                    frame = resize_frames(frame[None], resize)[0]
                frames.append(frame)
    except (OSError, ValueError, IndexError) as error:  # av's own errors are OSErrors, ValueErrors
        raise DataError(f"{path}: not a readable video ({one_line(error)}).") from error
    if not frames:
        raise DataError(f"{path}: a video without frames.")
    found = np.full(len(frames), -1, dtype=np.int64)
    if labels is not None:
        for frame_number, label in _read_labels(labels, len(frames)):
            found[frame_number] = label
    return LabelledData(np.stack(frames), found)


def _read_labels(path: Path, frames: int) -> list[tuple[int, int]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            for column in ("frame", "label"):
                if column not in (reader.fieldnames or ()):
                    raise DataError(
                        f"{path}: the column `{column}` is missing. The columns must be named "
                        "`frame` and `label`."
                    )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file ({error}).") from error
    out = []
    for line, row in enumerate(rows, start=2):
        try:
            frame, label = int(row["frame"]), int(row["label"])
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, line {line}: `frame` and `label` must be numbers.") from error
        if not 0 <= frame < frames:
            raise DataError(
                f"{path}, line {line}: there is no frame {frame}; the video has {frames}, from 0."
            )
        out.append((frame, label))
    return out
