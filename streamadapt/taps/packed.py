"""A folded convolution with its weight laid out for oneDNN.

PyTorch's convolution on the CPU puts the weight into oneDNN's layout in every call. A folded
layer's weight changes now and then only, and is packed then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamadapt.taps.folded import FoldedConv2d


class PackedConvolution:
    """Runs one folded convolution, where that can be done; else returns None.

    Args:
        layer: whose weight is packed anew whenever it was written to.
    """

    def __init__(self, layer: FoldedConv2d) -> None:
        padding: Any = layer.padding
        self._layer = layer
        self._settings = [list(padding), list(layer.stride), list(layer.dilation), layer.groups]
        self._weight: Tensor | None = None
        self._of: Tensor | None = None
        self._version = -1
        self._run: Any = torch.ops.mkldnn._convolution_pointwise
        self._reorder: Any = getattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")  # noqa: B009

    @classmethod
    def of(cls, layer: Any) -> PackedConvolution | None:
        """For a layer, if it is one that this can be done for."""
        if not isinstance(layer, FoldedConv2d) or not torch.backends.mkldnn.is_available():
            return None
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return cls(layer) if plain else None

    def __call__(self, x: Tensor) -> Tensor | None:
        """The layer's output; None, and nothing done, where it has to run itself."""
        layer = self._layer
        weight: Tensor = layer.weight
        if (
            type(x) is not Tensor
            or x.dtype is not torch.float32
            or weight.dtype is not torch.float32
            or x.dim() != 4
            or not x.is_cpu
            or not weight.is_cpu
            or not x.numel()
            or torch.is_grad_enabled()
            or weight.is_inference()
            or torch._C._get_tracing_state() is not None
            or torch._C._functorch.is_functorch_wrapped_tensor(x)
        ):
            return None
        if self._of is not weight or self._version != weight._version:
            with torch.inference_mode(False):
                plain = weight.detach().to_mkldnn()
                self._weight = self._reorder(plain, *self._settings, list(x.shape))
            self._of, self._version = weight, weight._version
        z: Tensor = self._run(x, self._weight, layer.bias, *self._settings, "none", [], "")
        return z
