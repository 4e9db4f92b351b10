"""Ways of answering a stream, behind one protocol, so that a replay can compare them."""

from streamadapt.replay.policies.adabn import AdaBNPolicy as AdaBNPolicy
from streamadapt.replay.policies.base import BasePolicy as BasePolicy
from streamadapt.replay.policies.base import Policy as Policy
from streamadapt.replay.policies.build import build_policy as build_policy
from streamadapt.replay.policies.frozen import FrozenPolicy as FrozenPolicy
from streamadapt.replay.policies.processor import ProcessorPolicy as ProcessorPolicy

__all__ = [
    "AdaBNPolicy",
    "BasePolicy",
    "FrozenPolicy",
    "Policy",
    "ProcessorPolicy",
    "build_policy",
]
