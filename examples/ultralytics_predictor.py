"""An Ultralytics predictor whose detector is adapted to each source. Ultralytics is AGPL-3.0.

`python examples/ultralytics_predictor.py video.mp4`
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils.torch_utils import select_device

import streamadapt as sa


class AdaptedPredictor(DetectionPredictor):
    """Loads the detector unfused, since a fused one has no BatchNorm left, and wraps it."""

    def setup_model(self, model: Any, verbose: bool = True) -> None:
        device = select_device(self.args.device, verbose=verbose)
        self.model = AutoBackend(
            model or self.args.model, device=device, fuse=False, verbose=verbose
        )
        self.device = self.model.device
        self.model.eval()
        self.processor = sa.StreamProcessor(
            self.model.model, max_streams=16, when_full="evict", class_scores=False
        )

    def inference(self, im: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.processor(im, *args, streams=self.streams(), **kwargs)

    def streams(self) -> list[str]:
        """What the frames of the batch belong to. URLs are no names: they may hold passwords."""
        paths = self.batch[0]
        if self.source_type.stream:
            return [f"camera-{index}" for index in range(len(paths))]
        return [Path(path).stem for path in paths]


def answers(weights: str, source: Any, **options: Any) -> Iterator[Any]:
    """Ultralytics' results for a source; `options` are those of `predict`."""
    yolo = YOLO(weights)
    results = yolo.predict(source, stream=True, predictor=AdaptedPredictor, **options)
    with yolo.predictor.processor:
        yield from results


if __name__ == "__main__":
    for result in answers("yolo11n.pt", sys.argv[1], verbose=False):
        print(len(result.boxes))
