"""A few frames of a stream in a file, for people to look at: what was there when it drifted."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from streamadapt.errors import ConfigurationError

# Slug and hash of the stream, step, slug of the reason, and what makes the name the file's own.
_NAME = re.compile(r"[a-z0-9-]+-[0-9a-f]{8}-step\d+-[a-z0-9-]+-[0-9a-f]{8}\.safetensors")
_SLUG = re.compile(r"[^a-z0-9]+")
_LONGEST_STREAM, _LONGEST_REASON = 40, 20


class FrameExport:
    """Writes frames into a folder, a few at a time, and not for ever.

    Each file is a safetensors file with a tensor `frames`, `[n, C, H, W]` as the model got them,
    and the metadata `stream`, `step`, `by` and `time` (ISO 8601, UTC). It is there as a whole or
    not at all. What lies in the folder is never replaced or deleted; when there is no room left,
    files that were looked at have to be moved away.

    Args:
        folder: made when the first file is written.
        frames: of a batch, at most, evenly spaced.
        files: in the folder, at most, those of former processes among them.

    Raises:
        ConfigurationError: not a path, or a number that is not a whole one from 1.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, frames: int = 16, files: int = 64
    ) -> None:
        if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
            raise ConfigurationError(f"`folder` must be a path, got {folder!r}.")
        for name, value in (("frames", frames), ("files", files)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"`{name}` must be a whole number from 1, got {value!r}.")
        self.folder = Path(folder)
        self.frames, self.files = frames, files
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FrameExport({str(self.folder)!r}, frames={self.frames}, files={self.files})"

    def save(self, stream: object, step: int, by: str, frames: object) -> Path | None:
        """Write some frames of a batch.

        Args:
            stream: whose frames they are.
            step: number of the step.
            by: what asked for it.
            frames: `[B, C, H, W]`, real, on any device.

        Returns:
            The file; None where the folder is full, or `frames` is something else.

        Raises:
            OSError: it cannot be written.
        """
        if not isinstance(frames, Tensor) or frames.dim() != 4 or not frames.numel():
            return None
        if frames.layout != torch.strided or frames.is_meta or frames.is_quantized:
            return None
        if frames.is_complex():
            return None
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._count() >= self.files:
                return None
            metadata = {
                "stream": _text(stream),
                "step": str(step),
                "by": _text(by),
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            }
            path = self.folder / _name(stream, step, by)
            _write(path, _some(frames, self.frames), metadata)
        return path

    def _count(self) -> int:
        return sum(_NAME.fullmatch(name) is not None for name in os.listdir(self.folder))


def _some(frames: Tensor, most: int) -> Tensor:
    """At most so many, the first and the last among them, on the CPU."""
    count = len(frames)
    kept = min(count, most)
    places = [place * (count - 1) // max(kept - 1, 1) for place in range(kept)]
    with torch.inference_mode(False), torch.no_grad():
        chosen = frames.detach().index_select(0, torch.tensor(places, device=frames.device))
        return chosen.cpu().contiguous()


def _write(path: Path, frames: Tensor, metadata: dict[str, str]) -> None:
    beside = path.with_name(f".{path.name}.partial")
    try:
        save_file({"frames": frames}, beside, metadata=metadata)
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):
            raise OSError(f"{path}: cannot be written: {error}") from error
        raise


def _name(stream: object, step: int, by: str) -> str:
    """One that is free: streams that look alike differ in their hash, steps in the last part."""
    known = hashlib.sha256(_text(stream).encode()).hexdigest()[:8]
    own = os.urandom(4).hex()
    slugs = _slug(stream, _LONGEST_STREAM) or "stream", _slug(by, _LONGEST_REASON) or "frames"
    return f"{slugs[0]}-{known}-step{step}-{slugs[1]}-{own}.safetensors"


def _slug(value: object, longest: int) -> str:
    return _SLUG.sub("-", _text(value).lower())[:longest].strip("-")


def _text(value: object) -> str:
    """As UTF-8 has it: a name may hold half a character."""
    return str(value).encode("utf-8", "backslashreplace").decode()
