"""A model of your own in Roboflow's `InferencePipeline`, with statistics of each source.

adapted = Adapted(sa.StreamProcessor(model, max_streams=16), prepare)
pipeline = InferencePipeline.init_with_custom_logic(
    video_reference=["rtsp://10.0.0.7/live", "rtsp://10.0.0.8/live"],
    on_video_frame=adapted.infer,
    on_prediction=adapted.on_prediction,
    on_pipeline_end=adapted.processor.unwrap,
)
pipeline.start()
pipeline.join()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import streamadapt as sa


class Adapted:
    """`infer` answers the frames of a pipeline; `on_prediction` is a sink that hands them on."""

    def __init__(
        self,
        processor: sa.StreamProcessor,
        prepare: Callable[[Any], Tensor],
        write: Callable[[dict[str, Any]], None] = print,
    ) -> None:
        self.processor, self.prepare, self.write = processor, prepare, write

    def infer(self, video_frames: list[Any]) -> list[dict[str, Any]]:
        """A prediction for each frame; there is at most one of each source."""
        batch = torch.stack([self.prepare(one.image[:, :, ::-1].copy()) for one in video_frames])
        with torch.inference_mode():
            outputs = self.processor(
                batch,
                streams=[stream_of(one) for one in video_frames],
                pts_seconds=[seconds_of(one) for one in video_frames],
            )
        return [{"class_id": int(one.argmax()), "scores": one.tolist()} for one in outputs]

    def on_prediction(self, predictions: Any, video_frame: Any) -> None:
        """Takes one frame, or a list in the order of the sources with None for those without."""
        if not isinstance(video_frame, list):
            predictions, video_frame = [predictions], [video_frame]
        for prediction, frame in zip(predictions, video_frame, strict=True):
            if frame is not None:
                self.write({"stream": stream_of(frame), "frame": frame.frame_id, **prediction})


def stream_of(frame: Any) -> str:
    return f"source-{frame.source_id or 0}"


def seconds_of(frame: Any) -> float:
    """Camera time; a file's `frame_timestamp` says when it was read."""
    if frame.comes_from_video_file and frame.fps:
        return frame.frame_id / frame.fps
    return frame.frame_timestamp.timestamp()
