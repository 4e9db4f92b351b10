"""The journal's file format, byte by byte. Everything is little-endian; nothing is ever unpickled.

A journal is a folder of files `journal-000001.saj`, `journal-000002.saj`, ..., each complete in
itself. `L` layers, `C` channels of all layers together (without the bank's padding), `F` fields of
the bank (2, and 2 more each for low-order halves and for what lies aside), `S` scalars of the
estimator. A file is a header and then records until it ends.

Header::

    offset     size
    0          8      magic 89 53 41 4A 0D 0A 1A 0A ("SAJ" in a frame that shows text-mode damage)
    8          4      u32 schema version, 1
    12         4      u32 H, bytes of JSON
    16         4      u32 C
    20         4      u32 CRC-32 of bytes 8 to 20 and of the rest of the header
    24         H      JSON, UTF-8
    24+H       4 C    f32 source means, the layers one after the other
    24+H+4C    4 C    f32 source variances

JSON of the header: `layers` (a list of `[name, channels, eps]`, in the bank's order), `estimator`
(its repr), `fields` (F), `scalars` (names), `timing`, `mode`, `precision`, `max_streams`,
`library` and `torch` (versions), `run` (16 hex digits, another one for each processor),
`fingerprint` (SHA-256 over layers and source, see `Header.fingerprint`), `created_seconds` (Unix).

Record::

    0          4      u32 N, bytes of the payload
    4          4      u32 CRC-32 of N's four bytes and of the payload
    8          N      payload

The length is inside the CRC, so that a tail of zeros is not a row of empty records.

Payload, without gaps::

    0          4      u32 M, bytes of JSON
    4          4      u32 R, rows of the step
    8          4      u32 K, rows whose whole state is in the record
    12         4      u32 flags: 1 moments, 2 distances, 4 health
    16         M      JSON, UTF-8
    if flags & 1:
               8 L    f64 positions that one frame has in each layer, 0 where it was not executed
               w R C  mean of this batch, by row
               w R C  variance of this batch, by row
    if flags & 2:
               4 R L  f32 distance of the committed state from the source, by row and layer
    if flags & 4:
               4 R 3  f32 mean entropy (nats), mean confidence, effective number of classes, by row
    if K > 0:
               4 K F C    f32 state after the step: mean, variance (and their low-order halves)
               8 K (2+L+S) f64 frames, updates, positions by layer, scalars

In precision `single`, `w` is 4 and moments are f32. In `half` it is 2, and moments are f16 in units
of the source, which keeps half precision where it matters whatever a layer's scale: the mean as
`(m - mu) / sqrt(v + eps)`, the variance as `ln((s + eps) / (v + eps))` with the source's `mu`, `v`.
Both lose at most 1 part in 2048 of themselves; means beyond 65504 deviations become that.

JSON of a record: `sequence` (from 0 in a run; a number that is missing is a record that was lost),
`step` (steps before it), `time_seconds` (Unix, when it was recorded), `outcome` (as in
`StepCompleted`; null for a record that only carries events), `streams`, `rows` (bank rows),
`frames`, `committed` (frames that went into each row's state; negative where the new state was
refused), `pts_seconds` (camera time of the newest frame), `elapsed_seconds`: all lists of length R;
`stated` (indices into `rows` of the K rows) and `origins`, beside it, what their states come from:
`source` (this step began on the source), `restored` (it began on a state put there from outside) or
`kept` (nothing but steps since the row's last record); `events` (since the previous record, oldest
first: each an object of its fields with its class as `event`) and `events_lost` (how many more);
and `settling`, true for the record of a settling pass, which shows the frames of
the record before it once more, with `healthy`, a list of R, where the answers were compared with
the source's: false where they said less.

A reader stops at the first record that is short or whose CRC is wrong; what follows counts as
damaged. A writer never appends to a file that it did not begin itself.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import DataError
from streamadapt.fingerprint import statistics_fingerprint

Precision = Literal["single", "half"]
MAGIC = b"\x89SAJ\r\n\x1a\n"
SCHEMA_VERSION = 1

_FRONT = struct.Struct("<8sIIII")  # magic, version, H, C, CRC


@dataclass(frozen=True)
class Layer:
    """One layer of the recorded model."""

    name: str
    channels: int
    eps: float


@dataclass(frozen=True, eq=False)
class Header:
    """What all records of a file have in common.

    Attributes:
        layers: in the bank's order.
        source: f32 `[2, C]`, mean and variance of the deployed model.
        estimator: repr of the recorded run's.
        fields: of the bank: 2, or 4 with low-order halves.
        scalars: names of the estimator's scalars.
        timing: of the recorded run.
        mode: when the file was begun.
        precision: of the moments.
        max_streams: rows of the bank.
        library: version of streamadapt.
        torch: version of PyTorch.
        run: 16 hex digits, the same for all files of one processor.
        created_seconds: Unix time.
    """

    layers: tuple[Layer, ...]
    source: NDArray[np.float32]
    estimator: str
    fields: int
    scalars: tuple[str, ...]
    timing: str
    mode: str
    precision: Precision
    max_streams: int
    library: str
    torch: str
    run: str
    created_seconds: float

    @property
    def channels(self) -> int:
        """Of all layers together."""
        return sum(layer.channels for layer in self.layers)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the layers' names, widths and eps, and of the source statistics."""
        return statistics_fingerprint(_plain(self.layers), self.source)

    def eps(self) -> NDArray[np.float64]:
        """`[C]`."""
        widths = [layer.channels for layer in self.layers]
        return np.repeat([layer.eps for layer in self.layers], widths)

    def starts(self) -> NDArray[np.intp]:
        """Index of each layer's first channel."""
        widths = [layer.channels for layer in self.layers]
        return np.cumsum([0, *widths[:-1]])

    def __repr__(self) -> str:
        return (
            f"Header(layers={len(self.layers)}, channels={self.channels}, "
            f"estimator={self.estimator!r}, timing={self.timing!r}, run={self.run!r})"
        )


def encode_header(header: Header) -> bytes:
    """The first bytes of a file."""
    plain = {
        "layers": _plain(header.layers),
        "estimator": header.estimator,
        "fields": header.fields,
        "scalars": list(header.scalars),
        "timing": header.timing,
        "mode": header.mode,
        "precision": header.precision,
        "max_streams": header.max_streams,
        "library": header.library,
        "torch": header.torch,
        "run": header.run,
        "fingerprint": header.fingerprint,
        "created_seconds": header.created_seconds,
    }
    text = json.dumps(plain, separators=(",", ":")).encode()
    rest = text + np.ascontiguousarray(header.source, dtype="<f4").tobytes()
    front = _FRONT.pack(MAGIC, SCHEMA_VERSION, len(text), header.channels, 0)
    checked = zlib.crc32(rest, zlib.crc32(front[8:20]))
    return front[:20] + struct.pack("<I", checked) + rest


def header_bytes(data: bytes | memoryview) -> int | None:
    """How long a file's header is, from its first bytes; None where they do not reach.

    Raises:
        DataError: not a journal, or one of another version.
    """
    if bytes(data[: len(MAGIC)]) != MAGIC[: len(data)]:
        raise DataError("not a journal: it does not begin with the magic bytes")
    if len(data) < _FRONT.size:
        return None
    _, version, text, channels, _ = _FRONT.unpack_from(data)
    if version != SCHEMA_VERSION:
        raise DataError(
            f"schema version {version}; this version of streamadapt reads {SCHEMA_VERSION}"
        )
    return int(_FRONT.size + text + 8 * channels)


def decode_header(data: bytes | memoryview) -> Header:
    """The header of a file, from exactly its bytes.

    Raises:
        DataError: it is damaged.
    """
    size = header_bytes(data)
    if size is None or len(data) < size:
        raise DataError("the header is cut short")
    _, _, length, channels, checked = _FRONT.unpack_from(data)
    if zlib.crc32(data[_FRONT.size : size], zlib.crc32(data[8:20])) != checked:
        raise DataError("the header is damaged: its checksum is wrong")
    try:
        plain = json.loads(bytes(data[_FRONT.size : _FRONT.size + length]))
        layers = tuple(Layer(str(n), int(c), float(eps)) for n, c, eps in plain["layers"])
        source = np.frombuffer(data, "<f4", 2 * channels, _FRONT.size + length)
        header = Header(
            layers=layers,
            source=source.astype(np.float32).reshape(2, channels),
            estimator=str(plain["estimator"]),
            fields=int(plain["fields"]),
            scalars=tuple(map(str, plain["scalars"])),
            timing=str(plain["timing"]),
            mode=str(plain["mode"]),
            precision=plain["precision"],
            max_streams=int(plain["max_streams"]),
            library=str(plain["library"]),
            torch=str(plain["torch"]),
            run=str(plain["run"]),
            created_seconds=float(plain["created_seconds"]),
        )
        fits = header.channels == channels and all(layer.channels > 0 for layer in layers)
        if not fits or header.precision not in ("single", "half") or header.fields not in (2, 4):
            raise ValueError("its parts do not fit each other")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the header makes no sense: {error}") from error
    return header


def _plain(layers: Sequence[Layer]) -> list[tuple[str, int, float]]:
    return [(layer.name, layer.channels, layer.eps) for layer in layers]
