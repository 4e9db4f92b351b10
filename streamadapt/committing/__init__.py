"""Commits of steps: by kernels, for the estimators and devices that there are some for."""

from streamadapt.committing.choice import choose_commit as choose_commit
from streamadapt.committing.compiled import CompiledCommit as CompiledCommit
from streamadapt.committing.device import DeviceCommit as DeviceCommit
from streamadapt.committing.proposing import Proposals as Proposals
from streamadapt.committing.steps import StepCommits as StepCommits
from streamadapt.committing.steps import thresholds as thresholds
from streamadapt.committing.written import Committed as Committed
from streamadapt.committing.written import KernelCommit as KernelCommit
from streamadapt.committing.written import Written as Written

__all__ = [
    "Committed",
    "CompiledCommit",
    "DeviceCommit",
    "KernelCommit",
    "Proposals",
    "StepCommits",
    "Written",
    "choose_commit",
    "thresholds",
]
