"""One record of a journal, to bytes and back. `format` says where each byte lies."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import DataError
from streamadapt.journal.format import Header
from streamadapt.journal.packing import pack, unpack

MOMENTS, DISTANCES, HEALTH = 1, 2, 4

_RECORD = struct.Struct("<II")  # N, CRC
_PAYLOAD = struct.Struct("<IIII")  # M, R, K, flags
_LISTS = ("streams", "rows", "frames", "committed", "pts_seconds", "elapsed_seconds")


@dataclass(frozen=True, eq=False)
class Payload:
    """A record as it is written: JSON and arrays, see the module's docstring.

    Attributes:
        meta: the JSON.
        positions: f64 `[L]`; None without moments.
        moments: f32 `[R, 2, C]`, mean and variance of the batch.
        distances: f32 `[R, L]`.
        health: f32 `[R, 3]`.
        states: f32 `[K, F, C]`.
        tallies: f64 `[K, 2 + L + S]`.
    """

    meta: Mapping[str, Any]
    positions: NDArray[np.float64] | None = None
    moments: NDArray[np.float32] | None = None
    distances: NDArray[np.float32] | None = None
    health: NDArray[np.float32] | None = None
    states: NDArray[np.float32] | None = None
    tallies: NDArray[np.float64] | None = None


def encode_record(payload: Payload, header: Header) -> bytes:
    """A record with its length and checksum."""
    text = json.dumps(payload.meta, separators=(",", ":")).encode()
    rows = len(payload.meta["rows"])
    stated = 0 if payload.states is None else len(payload.states)
    flags, parts = 0, [text]
    if payload.moments is not None and payload.positions is not None:
        flags |= MOMENTS
        parts.append(payload.positions.astype("<f8").tobytes())
        parts += [part.tobytes() for part in pack(payload.moments, header)]
    if payload.distances is not None:
        flags |= DISTANCES
        parts.append(payload.distances.astype("<f4").tobytes())
    if payload.health is not None:
        flags |= HEALTH
        parts.append(payload.health.astype("<f4").tobytes())
    if stated and payload.states is not None and payload.tallies is not None:
        parts.append(payload.states.astype("<f4").tobytes())
        parts.append(payload.tallies.astype("<f8").tobytes())
    body = b"".join([_PAYLOAD.pack(len(text), rows, stated, flags), *parts])
    length = struct.pack("<I", len(body))
    return length + struct.pack("<I", zlib.crc32(body, zlib.crc32(length))) + body


def whole_records(data: bytes | memoryview, start: int) -> list[tuple[int, int]]:
    """Where the payloads of whole records lie, `(begin, end)`, from `start` to the first damage."""
    found, view = [], memoryview(data)
    while len(data) - start >= _RECORD.size:
        length, checked = _RECORD.unpack_from(data, start)
        begin = start + _RECORD.size
        end = begin + length
        if length < _PAYLOAD.size or end > len(data):
            break
        if zlib.crc32(view[begin:end], zlib.crc32(view[start : start + 4])) != checked:
            break
        found.append((begin, end))
        start = end
    return found


def decode_payload(data: bytes | memoryview, header: Header) -> Payload:
    """A record, from the bytes of its payload.

    Raises:
        DataError: its parts do not fit each other, which a checksum alone cannot tell.
    """
    text, rows, stated, flags = _PAYLOAD.unpack_from(data)
    layers, channels = len(header.layers), header.channels
    width = 2 if header.precision == "half" else 4
    sizes = [
        8 * layers * bool(flags & MOMENTS),
        2 * width * rows * channels * bool(flags & MOMENTS),
        4 * rows * layers * bool(flags & DISTANCES),
        12 * rows * bool(flags & HEALTH),
        4 * stated * header.fields * channels,
        8 * stated * (2 + layers + len(header.scalars)),
    ]
    offsets = np.cumsum([_PAYLOAD.size + text, *sizes]).tolist()
    if offsets[-1] != len(data):
        raise DataError("a record whose length is not that of its parts")
    try:
        meta = json.loads(bytes(data[_PAYLOAD.size : offsets[0]]))
        if any(len(meta[name]) != rows for name in _LISTS) or len(meta["stated"]) != stated:
            raise ValueError("lists of another length than its rows")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a record that makes no sense: {error}") from error

    def part(index: int, dtype: str, *shape: int) -> NDArray[Any] | None:
        if not sizes[index]:
            return None
        count = sizes[index] // np.dtype(dtype).itemsize
        return np.frombuffer(data, dtype, count, offsets[index]).reshape(shape)

    raw = part(1, f"<f{width}", 2, rows, channels)
    return Payload(
        meta=meta,
        positions=part(0, "<f8", layers),
        moments=None if raw is None else unpack(raw, header),
        distances=part(2, "<f4", rows, layers),
        health=part(3, "<f4", rows, 3),
        states=part(4, "<f4", stated, header.fields, channels),
        tallies=part(5, "<f8", stated, 2 + layers + len(header.scalars)),
    )
