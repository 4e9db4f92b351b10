"""A sink of one's own: the examples' small pictures, enlarged before they are drawn over."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from examples.scenes import CLASSES
from streamadapt.pipeline import AnnotatedVideoSink, Result

_LEAST_SCORE = 0.3  # of boxes that are drawn


class EnlargedVideoSink:
    """Annotated videos of a whole number of times the frames' size.

    Args:
        folder: of the videos, one for each camera.
        times: as large.
    """

    def __init__(self, folder: str | os.PathLike[str], *, times: int = 6) -> None:
        self._sink, self._times = AnnotatedVideoSink(folder, labels=CLASSES), times

    def write(self, result: Result) -> None:
        """Add the result's frames."""
        frames = tuple(replace(one, data=self._enlarged(one.data)) for one in result.frames)
        output = result.output
        if isinstance(output, list):
            output = [self._moved(one) for one in output]
        self._sink.write(replace(result, frames=frames, output=output))

    def close(self) -> None:
        """Finish the files."""
        self._sink.close()

    def _enlarged(self, picture: Any) -> Any:
        return np.asarray(picture).repeat(self._times, 0).repeat(self._times, 1)

    def _moved(self, found: dict[str, Any]) -> dict[str, Any]:
        shown = found["scores"] >= _LEAST_SCORE
        kept = {name: one[shown] for name, one in found.items()}
        return {**kept, "boxes": kept["boxes"] * self._times}
