"""Segmentation in eight worlds, frozen beside adapted: `python -m examples.segmentation.run`.

Every camera shows new scenes through one degradation, 25 a second. A batch has a frame of each, and
each is normalised with its own camera's statistics.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import streamadapt as sa
from examples.enlarged import EnlargedVideoSink
from examples.scenes import CLASSES, WORLDS, cameras
from examples.segmentation.network import PREPARE, load
from streamadapt.pipeline import Sink

Masks = NDArray[np.integer]


def frozen(model: nn.Module, pictures: NDArray[np.uint8]) -> Masks:
    """Masks `[frames, 64, 64]` that a model as it is finds."""
    with torch.inference_mode():
        found = [
            model(torch.stack([PREPARE(one) for one in part])).argmax(1).numpy().astype(np.uint8)
            for part in np.array_split(pictures, max(len(pictures) // 32, 1))
        ]
    return np.concatenate(found)


def adapted(
    model: nn.Module, given: NDArray[np.uint8], *, sinks: tuple[Sink, ...] = (), **options
) -> Masks:
    """Masks `[cameras, frames, 64, 64]` of a processor with a row for each camera."""
    found = np.zeros(given.shape[:-1], np.uint8)
    names = [f"camera-{k}" for k in range(len(given))]
    pairs = zip(given, names, strict=True)
    sources = [sa.frames.open(own, stream_id=name, fps=25) for own, name in pairs]
    with sa.StreamProcessor(model, max_streams=len(given), **options) as processor:
        pipeline = sa.Pipeline(sources, processor, sinks, preprocess=PREPARE)
        for result in pipeline:
            for frame, scores in result:
                found[names.index(str(frame.stream_id)), frame.frame_id] = scores.argmax(0)
    return found


def iou(found: Masks, truth: Masks) -> NDArray[np.float64]:
    """Intersection over union of each class, over all pixels of all frames, `[classes]`."""
    count = len(CLASSES)
    pairs = truth.reshape(-1).astype(np.int64) * count + found.reshape(-1)
    table = np.bincount(pairs, minlength=count**2).reshape(count, count)
    both = table.diagonal()
    return both / np.maximum(table.sum(0) + table.sum(1) - both, 1)


def main() -> None:
    """Prints the mean IoU of each camera."""
    parser = argparse.ArgumentParser(description="Segmentation in eight worlds.")
    parser.add_argument("--frames", type=int, default=300, help="of each camera")
    parser.add_argument("--video", type=Path, help="a folder for annotated videos of the cameras")
    options = parser.parse_args()
    model = load()
    given, drawn = cameras(options.frames)
    sinks = (EnlargedVideoSink(options.video),) if options.video else ()
    before = [frozen(model, own) for own in given]
    after = adapted(model, given, sinks=sinks)
    print(f"{'mean IoU':20s} frozen  adapted")
    for k, (world, severity) in enumerate(WORLDS):
        scores = [float(iou(one[k], drawn[k].masks).mean()) for one in (before, after)]
        print(f"{f'{world}, {severity}':20s} {scores[0]:6.3f}  {scores[1]:7.3f}")


if __name__ == "__main__":
    main()
