"""The format of a generation: one safetensors file, specified in docs/snapshot-format.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from streamadapt.errors import DataError
from streamadapt.store.state import FIELDS, StreamState

FORMAT = "streamadapt-state"
VERSION = 1
_STATISTICS, _COUNTERS, _FURTHER = "statistics", "counters", "further."
_Arrays = Mapping[str, NDArray[Any]]


def encode(state: StreamState, *, generation: int) -> bytes:
    """A generation's bytes.

    Args:
        state: what is kept.
        generation: its number among those of the stream.
    """
    arrays: dict[str, NDArray[Any]] = {
        _STATISTICS: np.ascontiguousarray(state.statistics, dtype="<f4"),
        _COUNTERS: np.ascontiguousarray(state.counters, dtype="<f8"),
    }
    for name, array in state.further.items():
        arrays[_FURTHER + name] = np.ascontiguousarray(array)
    described = {
        "format": FORMAT,
        "version": str(VERSION),
        "library": _library(),
        "stream": json.dumps(state.stream),
        "generation": str(generation),
        "step": str(state.step),
        "saved_at": repr(state.saved_at),
        "model": state.model,
        "preprocessing": state.preprocessing,
        "estimator": state.estimator,
        "layers": json.dumps([list(one) for one in state.layers]),
        "fields": json.dumps(state.fields),
        "columns": json.dumps(state.columns),
    }
    described["checksum"] = _checksum(described, arrays)
    return save(arrays, metadata=described)


def decode(content: bytes, *, where: str) -> tuple[StreamState, int]:
    """What `encode` made, and the generation's number.

    Args:
        content: of a file.
        where: what it is called in errors.

    Raises:
        DataError: it is something else, of another version, or damaged.
    """
    try:
        described = _metadata(content)
        if described.get("format") != FORMAT:
            raise DataError(f"{where}: not a state of streamadapt.")
        if described.get("version") != str(VERSION):
            raise DataError(
                f"{where}: written in version {described.get('version')} of the format; this is "
                f"version {VERSION}."
            )
        arrays = load(content)
        told = described.pop("checksum")
        if told != _checksum(described, arrays):
            raise DataError(f"{where}: damaged, its checksum does not fit.")
        state = StreamState(
            stream=json.loads(described["stream"]),
            model=described["model"],
            preprocessing=described["preprocessing"],
            estimator=described["estimator"],
            layers=tuple((str(n), int(c), float(e)) for n, c, e in json.loads(described["layers"])),
            fields=tuple(json.loads(described["fields"])),
            statistics=arrays[_STATISTICS],
            columns=tuple(json.loads(described["columns"])),
            counters=arrays[_COUNTERS],
            further={
                name.removeprefix(_FURTHER): array
                for name, array in arrays.items()
                if name.startswith(_FURTHER)
            },
            step=int(described["step"]),
            saved_at=float(described["saved_at"]),
        )
        generation = int(described["generation"])
    except DataError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: cannot be read as a state: {error}") from error
    _require_shapes(state, where)
    return state, generation


def _library() -> str:
    try:
        return version("streamadapt")
    except PackageNotFoundError:
        return "unknown"


def _metadata(content: bytes) -> dict[str, str]:
    """What safetensors' header says beside the tensors."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise ValueError("it ends too early")
    header = json.loads(content[8 : 8 + size])
    described = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return {str(key): str(value) for key, value in described.items()}


def _checksum(described: Mapping[str, str], arrays: _Arrays) -> str:
    """SHA-256 of the metadata as sorted JSON, then of each array's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(dict(described), sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _require_shapes(state: StreamState, where: str) -> None:
    channels = sum(width for _, width, _ in state.layers)
    fits = (
        state.statistics.shape == (len(state.fields), channels)
        and state.counters.shape == (len(state.columns),)
        and state.fields[:2] == FIELDS[:2]
        and set(state.fields) <= set(FIELDS)
    )
    if not fits or not np.isfinite(state.statistics).all():
        raise DataError(
            f"{where}: its statistics are {list(state.statistics.shape)}, where "
            f"{len(state.fields)} fields of {channels} channels were announced, or not finite."
        )
    if (state.statistics[1] < 0).any():
        raise DataError(f"{where}: it has negative variances.")
