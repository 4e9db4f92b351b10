"""An OpenCV loop with three lines changed, and the same camera read ahead in a thread.

`python examples/opencv_loop.py video.mp4`
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.pipeline import Preprocess


def answers(
    capture: cv2.VideoCapture, model: nn.Module, prepare: Callable[[Any], Tensor]
) -> Iterator[Tensor]:
    """The model's output for each picture; afterwards the model is as it was."""
    with sa.StreamProcessor(model) as processor:  # new
        while True:
            there, bgr = capture.read()
            if not there:
                return
            frame = prepare(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)).unsqueeze(0)
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000  # new; with a live camera: None
            with torch.inference_mode():
                output = processor(frame, pts_seconds=seconds)  # was: model(frame)
            yield output


def answers_ahead(
    source: cv2.VideoCapture | Callable[[], cv2.VideoCapture],
    model: nn.Module,
    prepare: Callable[[Any], Tensor],
    **options: Any,
) -> Iterator[Tensor]:
    """The same for what `sa.frames.open` opens, with its options.

    A capture is read to its end. A function that makes one, as in
    `lambda: cv2.VideoCapture("rtsp://10.0.0.7/live")`, is a camera: it is called again when the
    camera was away, and frames that the model is too slow for are dropped.
    """
    with sa.StreamProcessor(model) as processor:
        reader = sa.frames.open(source, stream_id="dock-1", **options)
        for result in processor.run(reader, preprocess=prepare, max_batch=1):
            yield result.output


if __name__ == "__main__":
    from torchvision.models import resnet18

    imagenet = Preprocess.parse("resize=256,fit=shortest,crop=224,normalize=imagenet")
    for one in answers(cv2.VideoCapture(sys.argv[1]), resnet18(weights="DEFAULT").eval(), imagenet):
        print(int(one.argmax()))
