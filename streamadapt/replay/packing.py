"""Long series of few values as short text: bits in base64, and run lengths."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from itertools import groupby
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")


def pack_bits(values: ArrayLike) -> str:
    """Eight values a byte, the first in the highest bit, the last byte filled with zeros; base64.

    >>> pack_bits([True, False, False, False, False, False, False, True, True])
    'gYA='
    """
    return base64.b64encode(np.packbits(np.asarray(values, dtype=bool)).tobytes()).decode("ascii")


def unpack_bits(text: str, *, count: int) -> NDArray[np.bool_]:
    """The `count` values that `pack_bits` packed.

    Raises:
        ValueError: not base64, or another number of bytes than `count` values need.
    """
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from error
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes for {count} bits")
    return np.unpackbits(packed, count=count).astype(bool)


def to_runs(values: Iterable[T]) -> list[tuple[T, int]]:
    """Each value and how often it comes in a row.

    >>> to_runs(["a", "a", "b"])
    [('a', 2), ('b', 1)]
    """
    return [(value, sum(1 for _ in run)) for value, run in groupby(values)]


def from_runs(runs: Iterable[tuple[T, int]]) -> list[T]:
    """What `to_runs` was given."""
    return [value for value, count in runs for _ in range(count)]
