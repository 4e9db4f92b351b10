"""Kernels in C for the CPU, called on raw pointers; the sources are in `src`."""

from streamadapt.ops.compiled.library import CommitCall as CommitCall
from streamadapt.ops.compiled.library import Found as Found
from streamadapt.ops.compiled.library import Kernels as Kernels
from streamadapt.ops.compiled.library import LayerCall as LayerCall
from streamadapt.ops.compiled.library import ProposalCall as ProposalCall
from streamadapt.ops.compiled.library import TablesCall as TablesCall
from streamadapt.ops.compiled.library import find as find

__all__ = ["CommitCall", "Found", "Kernels", "LayerCall", "ProposalCall", "TablesCall", "find"]
