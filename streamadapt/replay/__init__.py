"""Labelled streams with a moving camera: replay them, compare policies, draw the result."""

from streamadapt.replay.bootstrap import Interval as Interval
from streamadapt.replay.bootstrap import paired_interval as paired_interval
from streamadapt.replay.corruptions import CORRUPTIONS as CORRUPTIONS
from streamadapt.replay.corruptions import corrupt as corrupt
from streamadapt.replay.data import LabelledData as LabelledData
from streamadapt.replay.data import load_data as load_data
from streamadapt.replay.models import load_model as load_model
from streamadapt.replay.policies import AdaBNPolicy as AdaBNPolicy
from streamadapt.replay.policies import FrozenPolicy as FrozenPolicy
from streamadapt.replay.policies import Policy as Policy
from streamadapt.replay.policies import ProcessorPolicy as ProcessorPolicy
from streamadapt.replay.report import render_picture as render_picture
from streamadapt.replay.report import render_report as render_report
from streamadapt.replay.result import PolicySeries as PolicySeries
from streamadapt.replay.result import Reliability as Reliability
from streamadapt.replay.result import ReplayEvent as ReplayEvent
from streamadapt.replay.result import ReplayResult as ReplayResult
from streamadapt.replay.runner import run as run
from streamadapt.replay.scenario import Domain as Domain
from streamadapt.replay.scenario import PolicySpec as PolicySpec
from streamadapt.replay.scenario import Scenario as Scenario
from streamadapt.replay.scenario import TimeConstraint as TimeConstraint
from streamadapt.replay.spans import DomainSpan as DomainSpan
from streamadapt.replay.split import Split as Split
from streamadapt.replay.stream import Batch as Batch
from streamadapt.replay.stream import Stream as Stream

__all__ = [
    "CORRUPTIONS",
    "AdaBNPolicy",
    "Batch",
    "Domain",
    "DomainSpan",
    "FrozenPolicy",
    "Interval",
    "LabelledData",
    "Policy",
    "PolicySeries",
    "PolicySpec",
    "ProcessorPolicy",
    "Reliability",
    "ReplayEvent",
    "ReplayResult",
    "Scenario",
    "Split",
    "Stream",
    "TimeConstraint",
    "corrupt",
    "load_data",
    "load_model",
    "paired_interval",
    "render_picture",
    "render_report",
    "run",
]
