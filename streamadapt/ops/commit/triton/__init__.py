"""The kernels, and the operators of `torch.ops.streamadapt` that launch them."""

from streamadapt.ops.commit.triton.operators import commit_blended as commit_blended
from streamadapt.ops.commit.triton.operators import commit_restarting as commit_restarting

__all__ = ["commit_blended", "commit_restarting"]
