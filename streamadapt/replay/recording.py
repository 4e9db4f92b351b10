"""The frames of a stream, made once: every policy and every process reads the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import DataError
from streamadapt.replay.durable import replacing
from streamadapt.replay.spans import DomainSpan
from streamadapt.replay.stream import Stream

FRAMES_FILE, CALIBRATION_FILE, SCHEDULE_FILE = "frames.npy", "calibration.npy", "schedule.npz"


@dataclass(frozen=True, repr=False, eq=False)
class Recording:
    """A stream on disk or in memory.

    Attributes:
        frames: uint8 `[F, H, W, 3]`, memory-mapped where it is on disk.
        calibration: uint8 `[N, H, W, 3]`, clean images that policies may see before the stream.
        labels: int64 `[F]`, -1 where unknown.
        domains: int64 `[F]`, place in `spans`.
        camera_numbers: int64 `[F]`, place in `cameras`; empty where there is only one.
        cameras: their names; empty where there is only one.
        batch_frames: int64 `[B]`, frames of each batch.
        starts: numbers of the batches at which a domain starts.
        spans: visits of domains.
        sha256: of frames and labels.
    """

    frames: NDArray[np.uint8]
    calibration: NDArray[np.uint8]
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    camera_numbers: NDArray[np.int64]
    cameras: tuple[str, ...]
    batch_frames: NDArray[np.int64]
    starts: tuple[int, ...]
    spans: tuple[DomainSpan, ...]
    sha256: str

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batch_frames)

    def __repr__(self) -> str:
        return f"Recording(frames=uint8 {list(self.frames.shape)}, batches={len(self)})"

    def edges(self) -> NDArray[np.int64]:
        """Where batches start: batch `b` is frames `edges[b]` to `edges[b + 1]`."""
        return np.concatenate([[0], np.cumsum(self.batch_frames)])

    def streams(self, first: int, last: int) -> tuple[str, ...] | None:
        """The cameras of some frames; None where there is only one."""
        if not self.cameras:
            return None
        return tuple(self.cameras[number] for number in self.camera_numbers[first:last])

    def ahead(self, start: int) -> NDArray[np.int64]:
        """Places of the frames that an oracle sees at the `start`-th of `starts`.

        Those of the domain that starts there; all, where domains do not come one after the other.
        """
        if len(self.starts) != len(self.spans):
            return np.arange(len(self.labels))
        return np.flatnonzero(self.domains == start)


def record(
    stream: Stream, *, folder: Path | None, key: str, progress: Callable[[str], None]
) -> Recording:
    """Go through a stream once and keep it.

    Args:
        stream: what to keep.
        folder: where; None keeps it in memory.
        key: what `open_recording` is to ask for.
        progress: called before each batch, in words.

    Raises:
        DataError: no room, or not writable.
    """
    if folder is not None:
        for name in (SCHEDULE_FILE, FRAMES_FILE, CALIBRATION_FILE):
            (folder / name).unlink(missing_ok=True)  # never a schedule beside another's frames
    taken = _Taken(stream)
    if folder is None:
        frames = _gather(taken, progress)
    else:
        _write_frames(folder, taken, progress)
    calibration = list(stream.calibration())
    arrays = {
        "labels": np.concatenate(taken.labels),
        "domains": np.concatenate(taken.domains),
        "camera_numbers": np.asarray(taken.camera_numbers, dtype=np.int64),
        "batch_frames": np.asarray([len(one) for one in taken.labels], dtype=np.int64),
    }
    shown = np.concatenate(calibration) if calibration else np.zeros((0, 1, 1, 3), dtype=np.uint8)
    words: dict[str, Any] = {
        "key": key,
        "cameras": list(taken.cameras),
        "starts": sorted(stream.starts),
        "spans": [asdict(span) for span in stream.spans],
        "sha256": taken.digest.hexdigest(),
    }
    if folder is None:
        return _recording(frames, shown, arrays, words)
    with replacing(folder / CALIBRATION_FILE) as file:
        np.save(file, shown)
    # The schedule comes last: where it is, the frames are whole.
    with replacing(folder / SCHEDULE_FILE) as file:
        np.savez(file, words=np.array(json.dumps(words)), **arrays)  # type: ignore[arg-type]
    found = open_recording(folder, key=key)
    assert found is not None
    return found


def open_recording(folder: Path, *, key: str) -> Recording | None:
    """What `record` left in a folder; None where there is nothing, or what has another key."""
    if not (folder / SCHEDULE_FILE).exists():
        return None
    try:
        with np.load(folder / SCHEDULE_FILE) as file:
            arrays = {name: file[name] for name in file.files}
        words = json.loads(str(arrays.pop("words")))
        if words["key"] != key:
            return None
        frames = np.load(folder / FRAMES_FILE, mmap_mode="r")
        calibration = np.load(folder / CALIBRATION_FILE, mmap_mode="r")
        return _recording(frames, calibration, arrays, words)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{folder}: the frames kept there cannot be read ({error}). Make them anew: `--fresh`, "
            "or another run directory."
        ) from error


class _Taken:
    """What is learnt of a stream while its frames go by."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.frame_count = stream.frame_count
        self.digest = hashlib.sha256()
        self.labels: list[NDArray[np.int64]] = []
        self.domains: list[NDArray[np.int64]] = []
        self.cameras = tuple(
            dict.fromkeys(span.camera for span in stream.spans if span.camera is not None)
        )
        self.camera_numbers: list[int] = []

    def batches(self, progress: Callable[[str], None]) -> Iterator[NDArray[np.uint8]]:
        number = {camera: place for place, camera in enumerate(self.cameras)}
        done, total = 0, self.frame_count
        progress(f"making frames, {done:,} of {total:,}")
        for batch in self._stream:
            self.digest.update(np.ascontiguousarray(batch.frames).data)
            self.digest.update(np.ascontiguousarray(batch.labels, dtype="<i8").data)
            self.labels.append(batch.labels)
            self.domains.append(batch.domains)
            if self.cameras:
                assert batch.streams is not None
                self.camera_numbers += [number[camera] for camera in batch.streams]
            yield batch.frames
            done += len(batch.labels)
            progress(f"making frames, {done:,} of {total:,}")


def _gather(taken: _Taken, progress: Callable[[str], None]) -> NDArray[np.uint8]:
    out, done = np.empty((0, 0, 0, 3), dtype=np.uint8), 0
    for frames in taken.batches(progress):
        if not done:
            out = np.empty((taken.frame_count, *frames.shape[1:]), dtype=np.uint8)
        out[done : done + len(frames)] = frames
        done += len(frames)
    return out


def _write_frames(folder: Path, taken: _Taken, progress: Callable[[str], None]) -> None:
    header_written = False
    with replacing(folder / FRAMES_FILE) as file:
        for frames in taken.batches(progress):
            if not header_written:
                shape = (taken.frame_count, *frames.shape[1:])
                _check_room(folder, shape)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                header_written = True
            file.write(np.ascontiguousarray(frames).data)


def _check_room(folder: Path, shape: tuple[int, ...]) -> None:
    wanted, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(folder).free
    if wanted > free:
        raise DataError(
            f"{folder}: the frames take {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. Give "
            "a run directory on a larger disk, or set `samples` lower."
        )


def _recording(
    frames: NDArray[np.uint8],
    calibration: NDArray[np.uint8],
    arrays: dict[str, NDArray[np.int64]],
    words: dict[str, Any],
) -> Recording:
    return Recording(
        frames=frames,
        calibration=calibration,
        cameras=tuple(words["cameras"]),
        starts=tuple(words["starts"]),
        spans=tuple(
            DomainSpan(**{**one, "severity": tuple(one["severity"])}) for one in words["spans"]
        ),
        sha256=words["sha256"],
        **arrays,
    )
