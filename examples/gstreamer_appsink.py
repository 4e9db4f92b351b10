"""A GStreamer pipeline that ends in an appsink.

`python3 examples/gstreamer_appsink.py 'filesrc location=video.mp4 ! decodebin'`, with a Python that
has PyGObject (Debian: python3-gi, gir1.2-gst-plugins-base-1.0).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import streamadapt as sa  # noqa: E402
from streamadapt.pipeline import Preprocess  # noqa: E402

_SINK = "videoconvert ! video/x-raw,format=RGB ! appsink name=dock-1 max-buffers=4 sync=false"


def answers(
    source: str, model: nn.Module, prepare: Callable[[Any], Tensor], *, live: bool = False
) -> Iterator[Tensor]:
    """The model's output for each frame of `source`, the part of a pipeline that decodes.

    Raises:
        RuntimeError: the pipeline does not play.
    """
    Gst.init(None)
    pipeline = Gst.parse_launch(f"{source} ! {_SINK}")
    try:
        pipeline.set_state(Gst.State.PLAYING)
        if pipeline.get_state(10 * Gst.SECOND)[0] == Gst.StateChangeReturn.FAILURE:
            message = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
            why = message.parse_error()[0].message if message else "a decoder may be missing"
            raise RuntimeError(f"{source}: {why}")
        frames = sa.frames.open(pipeline.get_by_name("dock-1"), live=live)
        with sa.StreamProcessor(model) as processor:
            for result in processor.run(frames, preprocess=prepare, max_batch=1):
                yield result.output
    finally:
        pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    from torchvision.models import resnet18

    imagenet = Preprocess.parse("resize=256,fit=shortest,crop=224,normalize=imagenet")
    for one in answers(sys.argv[1], resnet18(weights="DEFAULT").eval(), imagenet):
        print(int(one.argmax()))
