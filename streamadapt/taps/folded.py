"""Layers that a BatchNorm is folded into, and that keep what is needed to fold it in anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.ops.refold import refold_


class FoldedLayer(nn.Module):
    """A convolution or linear layer with a BatchNorm folded into its weight and bias.

    Its `forward` is the plain layer's. `running_mean` and `running_var` are the statistics that
    `weight` and `bias` are folded with; `refold` has to be called after they were written.

    Attributes:
        original_weight: of the layer alone.
        original_bias: of the layer alone, or None.
        gamma: the BatchNorm's factor, `[channels]`.
        beta: what it adds, `[channels]`.
        eps: what it adds to the variance.
    """

    weight: Any
    bias: Any
    original_weight: Tensor
    original_bias: Tensor | None
    gamma: Tensor
    beta: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float

    def refold(self) -> None:
        """Write weight and bias anew from the statistics held, in place."""
        transposed = isinstance(self, nn.modules.conv._ConvTransposeNd)
        groups = int(getattr(self, "groups", 1)) if transposed else 1
        with writable(self.weight):
            refold_(
                self.weight,
                self.bias,
                self.original_weight,
                self.original_bias,
                self.gamma,
                self.beta,
                self.running_mean,
                self.running_var,
                self.eps,
                1 if transposed else 0,
                groups,
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, folded with eps={self.eps:g}"


def writable(tensor: Tensor) -> Any:
    """The mode in which a tensor may be written: its own, inference tensors included."""
    return torch.inference_mode() if tensor.is_inference() else _plain()


@contextmanager
def _plain() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


class FoldedConv1d(FoldedLayer, nn.Conv1d):
    """See `FoldedLayer`."""


class FoldedConv2d(FoldedLayer, nn.Conv2d):
    """See `FoldedLayer`."""

    weight: Any
    bias: Any


class FoldedConv3d(FoldedLayer, nn.Conv3d):
    """See `FoldedLayer`."""


class FoldedConvTranspose1d(FoldedLayer, nn.ConvTranspose1d):
    """See `FoldedLayer`."""


class FoldedConvTranspose2d(FoldedLayer, nn.ConvTranspose2d):
    """See `FoldedLayer`."""


class FoldedConvTranspose3d(FoldedLayer, nn.ConvTranspose3d):
    """See `FoldedLayer`."""


class FoldedLinear(FoldedLayer, nn.Linear):
    """See `FoldedLayer`."""


FOLDED_TYPES: dict[type[nn.Module], type[FoldedLayer]] = {
    nn.Conv1d: FoldedConv1d,
    nn.Conv2d: FoldedConv2d,
    nn.Conv3d: FoldedConv3d,
    nn.ConvTranspose1d: FoldedConvTranspose1d,
    nn.ConvTranspose2d: FoldedConvTranspose2d,
    nn.ConvTranspose3d: FoldedConvTranspose3d,
    nn.Linear: FoldedLinear,
}


class FoldedAway(nn.Identity):
    """Stands where a BatchNorm was, and says which layer it is folded into.

    Args:
        layer: that layer.
    """

    def __init__(self, layer: FoldedLayer) -> None:
        super().__init__()
        self._layer = [layer]  # not a submodule: it has its own place in the model

    @property
    def layer(self) -> FoldedLayer:
        """What the BatchNorm is folded into."""
        return self._layer[0]


def folded_layer(layer: nn.Module, norm: nn.Module) -> FoldedLayer:
    """A layer and the BatchNorm after it as one.

    Args:
        layer: of a type in `FOLDED_TYPES`; its weight and bias tensors are taken over.
        norm: PyTorch's own, with running statistics.
    """
    kind = FOLDED_TYPES[type(layer)]
    folded: Any = kind.__new__(kind)
    nn.Module.__init__(folded)
    # Whatever a convolution is configured by: strides, padding and what is derived of them.
    own = {key: value for key, value in vars(layer).items() if key not in vars(folded)}
    folded.__dict__.update(own)
    source: Any = norm
    with torch.inference_mode(False), torch.no_grad():
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None
        mean, var = source.running_mean.detach().clone(), source.running_var.detach().clone()
        gamma, beta = source.weight, source.bias
        kept = {
            "original_weight": weight.detach(),
            "original_bias": None if bias is None else bias.detach(),
            "gamma": torch.ones_like(mean) if gamma is None else gamma.detach().clone(),
            "beta": torch.zeros_like(mean) if beta is None else beta.detach().clone(),
            "running_mean": mean,
            "running_var": var,
        }
        folded.weight = nn.Parameter(torch.empty_like(weight), requires_grad=False)
        like = torch.empty(len(mean), dtype=weight.dtype, device=weight.device)
        folded.bias = nn.Parameter(like, requires_grad=False)
    for name, tensor in kept.items():
        folded.register_buffer(name, tensor)
    folded.eps = float(source.eps)
    folded.eval()
    made: FoldedLayer = folded
    made.refold()
    return made
