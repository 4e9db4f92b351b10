"""Ways of answering a stream, behind one protocol, so that a replay can compare them."""

from streamadapt.replay.policies.adabn import AdaBNPolicy as AdaBNPolicy
from streamadapt.replay.policies.base import BasePolicy as BasePolicy
from streamadapt.replay.policies.base import Policy as Policy
from streamadapt.replay.policies.build import build_policy as build_policy
from streamadapt.replay.policies.class_balanced import ClassBalancedPolicy as ClassBalancedPolicy
from streamadapt.replay.policies.eata import EATAPolicy as EATAPolicy
from streamadapt.replay.policies.frozen import FrozenPolicy as FrozenPolicy
from streamadapt.replay.policies.lame import LAMEPolicy as LAMEPolicy
from streamadapt.replay.policies.processor import ProcessorPolicy as ProcessorPolicy
from streamadapt.replay.policies.rdumb import RDumbPolicy as RDumbPolicy
from streamadapt.replay.policies.rotta import RoTTAPolicy as RoTTAPolicy
from streamadapt.replay.policies.sar import SARPolicy as SARPolicy
from streamadapt.replay.policies.tent import TentPolicy as TentPolicy
from streamadapt.replay.policies.unmix_tns import UnMixTNSPolicy as UnMixTNSPolicy

__all__ = [
    "AdaBNPolicy",
    "BasePolicy",
    "ClassBalancedPolicy",
    "EATAPolicy",
    "FrozenPolicy",
    "LAMEPolicy",
    "Policy",
    "ProcessorPolicy",
    "RDumbPolicy",
    "RoTTAPolicy",
    "SARPolicy",
    "TentPolicy",
    "UnMixTNSPolicy",
    "build_policy",
]
