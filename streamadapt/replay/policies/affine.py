"""BatchNorm layers that normalise by the batch, and whose scale and shift alone can learn."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamadapt.errors import ConfigurationError, UnsupportedModelError


def use_batch_statistics(model: nn.Module) -> None:
    """Make every BatchNorm layer normalise by the batch at hand; its buffers are never touched.

    The model stays in evaluation mode: dropout and stochastic depth are off, so the same frames
    get the same answer. A layer that sees a single value per channel (one frame, no spatial
    extent) has no batch to speak of: PyTorch refuses it, and a variance of zero would leave nothing
    of the frame but the shift. Such a call is normalised by the source statistics instead, layer
    by layer; the convolutional layers of the same model still use the frame's own positions.
    """
    model.eval()
    for layer in _layers(model):
        # In training mode and without tracking, PyTorch normalises by the batch and hands its
        # kernels no buffer to write to; in evaluation mode the buffers are still there to be read.
        layer.track_running_stats = False
        layer.register_forward_pre_hook(_choose_statistics)


def learn_affine_only(model: nn.Module, *, skip_last_layers: int = 0) -> list[nn.Parameter]:
    """Freeze everything but the scale and shift of the BatchNorm layers.

    Args:
        model: its `requires_grad` flags are rewritten.
        skip_last_layers: so many layers at the end, in registration order, stay frozen as well.

    Returns:
        What can learn, in registration order.

    Raises:
        UnsupportedModelError: the model has no BatchNorm layer with a scale or a shift.
        ConfigurationError: every layer is skipped.
    """
    model.requires_grad_(False)
    layers = [layer for layer in _layers(model) if list(layer.parameters(recurse=False))]
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no BatchNorm layer with a scale and a shift to learn. "
            "Choose a policy that adapts statistics or corrects outputs."
        )
    if skip_last_layers >= len(layers):
        raise ConfigurationError(
            f"`skip_last_layers` must leave a layer to learn: {type(model).__name__} has "
            f"{len(layers)}, got {skip_last_layers}. Lower it."
        )
    out = [
        parameter
        for layer in layers[: len(layers) - skip_last_layers]
        for parameter in layer.parameters(recurse=False)
    ]
    for parameter in out:
        parameter.requires_grad_(True)
    return out


def _layers(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _choose_statistics(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    x: Tensor = inputs[0]  # [N, C, ...]
    layer.training = x.numel() > x.shape[1]
