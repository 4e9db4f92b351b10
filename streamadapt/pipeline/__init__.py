"""From cameras to results: batches of several, a processor, sinks, a switch to turn it all off."""

from streamadapt.pipeline.batcher import Batcher as Batcher
from streamadapt.pipeline.kill_switch import KillSwitch as KillSwitch
from streamadapt.pipeline.pipeline import Pipeline as Pipeline
from streamadapt.pipeline.pipeline import PipelineStatus as PipelineStatus
from streamadapt.pipeline.preprocess import Preprocess as Preprocess
from streamadapt.pipeline.result import Latency as Latency
from streamadapt.pipeline.result import Reading as Reading
from streamadapt.pipeline.result import Result as Result
from streamadapt.pipeline.sinks import CallbackSink as CallbackSink
from streamadapt.pipeline.sinks import JsonLinesSink as JsonLinesSink
from streamadapt.pipeline.sinks import NullSink as NullSink
from streamadapt.pipeline.sinks import Sink as Sink
from streamadapt.pipeline.video_sink import AnnotatedVideoSink as AnnotatedVideoSink

__all__ = [
    "AnnotatedVideoSink",
    "Batcher",
    "CallbackSink",
    "JsonLinesSink",
    "KillSwitch",
    "Latency",
    "NullSink",
    "Pipeline",
    "PipelineStatus",
    "Preprocess",
    "Reading",
    "Result",
    "Sink",
]
