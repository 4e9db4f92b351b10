"""A detector in eight worlds, frozen beside adapted: `python -m examples.detection.run`.

Every camera shows new scenes through one degradation, 25 a second. Its BatchNorms are frozen ones,
of four buffers and no parameter; a `StreamProcessor` finds them, and gives each camera its own
statistics for them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import streamadapt as sa
from examples.detection.average_precision import mean_average_precision
from examples.detection.network import PREPARE, Detections, load
from examples.enlarged import EnlargedVideoSink
from examples.scenes import CLASSES, WORLDS, Scenes, cameras
from streamadapt.pipeline import Sink


def frozen(model: nn.Module, pictures: NDArray[np.uint8]) -> list[Detections]:
    """What a model as it is finds in each frame."""
    with torch.inference_mode():
        parts = torch.stack([PREPARE(one) for one in pictures]).split(32)
        return [one for part in parts for one in model(part)]


def adapted(
    model: nn.Module, given: NDArray[np.uint8], *, sinks: tuple[Sink, ...] = (), **options
) -> list[list[Detections]]:
    """What a processor with a row for each camera finds in each frame."""
    found: dict[str, list[Detections]] = {f"camera-{k}": [] for k in range(len(given))}
    pairs = zip(given, found, strict=True)
    sources = [sa.frames.open(own, stream_id=name, fps=25) for own, name in pairs]
    with sa.StreamProcessor(
        model, max_streams=len(given), class_scores=False, **options
    ) as processor:
        for result in sa.Pipeline(sources, processor, sinks, preprocess=PREPARE):
            for frame, detections in result:
                found[str(frame.stream_id)].append(detections)
    return list(found.values())


def score(found: list[Detections], drawn: Scenes, *, skip: int = 0) -> float:
    """Mean average precision at an overlap of a half, without so many frames at the start."""
    truth = list(zip(drawn.boxes, drawn.labels, strict=True))
    return mean_average_precision(found[skip:], truth[skip:], labels=range(1, len(CLASSES)))


def main() -> None:
    """Prints the average precision of each camera."""
    parser = argparse.ArgumentParser(description="Detection in eight worlds.")
    parser.add_argument("--frames", type=int, default=300, help="of each camera")
    parser.add_argument("--video", type=Path, help="a folder for annotated videos of the cameras")
    options = parser.parse_args()
    model = load()
    given, drawn = cameras(options.frames)
    sinks = (EnlargedVideoSink(options.video),) if options.video else ()
    before = [frozen(model, own) for own in given]
    after = adapted(model, given, sinks=sinks)
    print(f"{'AP50':20s} frozen  adapted")
    for k, (world, severity) in enumerate(WORLDS):
        scores = [score(one[k], drawn[k]) for one in (before, after)]
        print(f"{f'{world}, {severity}':20s} {scores[0]:6.3f}  {scores[1]:7.3f}")


if __name__ == "__main__":
    main()
