"""Commits by kernels, for the estimators and devices that there are some for."""

from streamadapt.committing.choice import choose_commit as choose_commit
from streamadapt.committing.compiled import CompiledCommit as CompiledCommit
from streamadapt.committing.device import DeviceCommit as DeviceCommit
from streamadapt.committing.written import KernelCommit as KernelCommit
from streamadapt.committing.written import Written as Written

__all__ = ["CompiledCommit", "DeviceCommit", "KernelCommit", "Written", "choose_commit"]
