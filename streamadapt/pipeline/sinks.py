"""Where results go."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

from streamadapt.errors import DataError
from streamadapt.frames.urls import redacted
from streamadapt.pipeline.result import Result

_TOP = 5  # classes that a line names


class Sink(Protocol):
    """Takes every result of a pipeline, in their order, in the pipeline's thread."""

    def write(self, result: Result) -> None:
        """Take a result."""
        ...

    def close(self) -> None:
        """There will be no more; called once, also after an error."""
        ...


class NullSink:
    """Takes results and does nothing with them."""

    def write(self, result: Result) -> None: ...

    def close(self) -> None: ...


class CallbackSink:
    """Calls a function with every result.

    Args:
        function: of a `Result`.
    """

    def __init__(self, function: Callable[[Result], object]) -> None:
        self._function = function

    def write(self, result: Result) -> None:
        self._function(result)

    def close(self) -> None: ...


class JsonLinesSink:
    """One line a frame: its camera, its times, its camera's readings, and what the model said.

    Class scores `[classes]` become the five best classes with their probabilities; other outputs
    are described by shape, unless `describe` says what to write.

    Args:
        path: a file, which is added to; `-` is stdout.
        describe: from a frame's output to a value that JSON can hold.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, describe: Callable[[Any], Any] | None = None
    ) -> None:
        self._path, self._describe = os.fspath(path), describe or described
        try:
            self._file: TextIO = sys.stdout
            if self._path != "-":
                self._file = Path(self._path).open("a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written ({error.strerror}).") from None

    def write(self, result: Result) -> None:
        """Add a line for each of the result's frames."""
        lines = [json.dumps(self._line(result, *one), allow_nan=False) + "\n" for one in result]
        self._file.write("".join(lines))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not sys.stdout:
            self._file.close()

    def _line(self, result: Result, frame: Any, output: Any) -> dict[str, Any]:
        reading = result.readings[frame.stream_id]
        latency = result.latency
        return {
            "stream": _plain(frame.stream_id),
            "frame": frame.frame_id,
            "pts_seconds": round(frame.pts_seconds, 6),
            "wallclock": round(frame.wallclock, 3),
            "rejection": frame.rejection,
            "drift": None if reading.drift is None else _finite(round(reading.drift, 6)),
            "phase": reading.phase,
            "action": reading.action,
            "batch": len(result.frames),
            "seconds": {
                "decode": round(frame.decode_seconds, 6),
                "queue": round(latency.queue, 6),
                "inference": round(latency.inference, 6),
                "update": round(latency.update, 6),
            },
            "output": self._describe(output),
        }


def described(output: Any) -> Any:
    """A frame's output as a value that JSON can hold."""
    if isinstance(output, Tensor):
        if output.dim() == 1 and output.is_floating_point() and len(output) > 1:
            return best_classes(output)
        if output.numel() == 1:
            return _finite(float(output))
        return {"shape": list(output.shape), "dtype": str(output.dtype).removeprefix("torch.")}
    if isinstance(output, Mapping):
        return {str(name): described(value) for name, value in output.items()}
    if isinstance(output, list | tuple):
        return [described(one) for one in output]
    if isinstance(output, float):
        return _finite(output)
    return output if isinstance(output, str | int | bool | None) else type(output).__name__


def best_classes(scores: Tensor) -> list[dict[str, Any]]:
    """The likeliest classes of `[classes]` scores, softmax."""
    probability = scores.detach().float().softmax(0).nan_to_num(0.0)
    values, index = torch.topk(probability, min(_TOP, len(scores)))
    return [
        {"class": int(one), "probability": round(float(value), 4)}
        for value, one in zip(values.cpu(), index.cpu(), strict=True)
    ]


def _plain(stream: Hashable) -> str | int:
    return stream if isinstance(stream, int) else redacted(str(stream))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
