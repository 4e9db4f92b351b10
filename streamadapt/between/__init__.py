"""What answers the batches between two that adapt: the model made as fast as it can be.

A builder makes a callable out of a plain model whose BatchNorms are folded; see `Builder`.
"""

from streamadapt.between.builder import Builder as Builder
from streamadapt.between.inductor import inductor_frozen as inductor_frozen
from streamadapt.between.onednn import onednn as onednn
from streamadapt.between.onnx_runtime import onnxruntime_session as onnxruntime_session

__all__ = ["Builder", "inductor_frozen", "onednn", "onnxruntime_session"]
