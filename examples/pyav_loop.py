"""A PyAV loop: frames have time stamps, and the processor goes by them.

`python examples/pyav_loop.py video.mp4`
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import av
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.pipeline import Preprocess


def answers(path: str, model: nn.Module, prepare: Callable[[Any], Tensor]) -> Iterator[Tensor]:
    """The model's output for each frame of a video; afterwards the model is as it was."""
    with av.open(path) as container, sa.StreamProcessor(model) as processor:
        for frame in container.decode(video=0):
            picture = prepare(frame.to_ndarray(format="rgb24")).unsqueeze(0)
            with torch.inference_mode():
                output = processor(picture, pts_seconds=float(frame.time))
            yield output


if __name__ == "__main__":
    from torchvision.models import resnet18

    imagenet = Preprocess.parse("resize=256,fit=shortest,crop=224,normalize=imagenet")
    for one in answers(sys.argv[1], resnet18(weights="DEFAULT").eval(), imagenet):
        print(int(one.argmax()))
