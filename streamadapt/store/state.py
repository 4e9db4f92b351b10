"""What is kept of one stream, as a value that knows neither model nor device."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import StreamError

FIELDS = ("mean", "var", "mean_low", "var_low", "mean_aside", "var_aside")
"""What `statistics` may consist of, in this order."""

Stream = str | int


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamState:
    """A stream's committed statistics, `C` channels of all layers one after the other.

    Attributes:
        stream: its name.
        model: fingerprint of the model's layers and source statistics.
        preprocessing: how frames were prepared, as a fingerprint; empty: nobody said.
        estimator: name of the rule that made it.
        layers: `(name, channels, eps)`.
        fields: which of `FIELDS` there are.
        statistics: `[fields, C]` fp32.
        columns: names of the counters; none: a stream with this state begins from the source.
        counters: `[columns]` float64.
        further: what other parts keep of a stream, by name.
        step: of the processor, after which it was taken.
        saved_at: seconds since 1970.
    """

    stream: Stream
    model: str
    preprocessing: str
    estimator: str
    layers: tuple[tuple[str, int, float], ...]
    fields: tuple[str, ...]
    statistics: NDArray[np.float32]
    columns: tuple[str, ...]
    counters: NDArray[np.float64]
    further: Mapping[str, NDArray[np.float32] | NDArray[np.float64]] = field(default_factory=dict)
    step: int
    saved_at: float

    @property
    def begins_anew(self) -> bool:
        """Whether it says no more than that: source statistics, and nothing counted."""
        return not self.columns

    def of_layer(self, name: str) -> NDArray[np.float32]:
        """A layer's statistics, `[fields, channels]`.

        Raises:
            KeyError: there is no such layer.
        """
        start = 0
        for known, channels, _ in self.layers:
            if known == name:
                return self.statistics[:, start : start + channels]
            start += channels
        raise KeyError(name)

    def counter(self, name: str) -> float:
        """A counter by name, such as `frames`.

        Raises:
            ValueError: there is none of that name.
        """
        return float(self.counters[self.columns.index(name)])

    def __repr__(self) -> str:
        return (
            f"StreamState({self.stream!r}, step={self.step}, estimator={self.estimator!r}, "
            f"fields={len(self.fields)}, channels={self.statistics.shape[1]})"
        )


def stream_name(stream: Hashable) -> Stream:
    """A stream's name, if it can be written down.

    Raises:
        StreamError: it is neither a string nor a whole number.
    """
    if isinstance(stream, bool) or not isinstance(stream, str | int):
        raise StreamError(
            f"With a `store`, streams are called by strings or whole numbers, not {stream!r} "
            f"({type(stream).__name__})."
        )
    return stream
