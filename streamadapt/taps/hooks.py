"""The tap for plain PyTorch modules: an instance-level `forward` on every adaptable layer.

`torch.compile` does not guard on module hooks, so a model compiled before it is wrapped would
never run one. It does guard on `forward` being absent from an instance: setting it recompiles
once, and deleting it makes the earlier graph valid again.
"""

from __future__ import annotations

import itertools
import types
import weakref
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.errors import UnsupportedModelError
from streamadapt.moments import Moments
from streamadapt.ops.remap import remap_coefficients
from streamadapt.taps.inventory import AdaptableLayer
from streamadapt.taps.packed import PackedConvolution, ordinary
from streamadapt.taps.step import Step

_keys = itertools.count(1)
_taps: weakref.WeakValueDictionary[int, ModelTap] = weakref.WeakValueDictionary()

# Opaque to the compiler: they run as they are between compiled kernels. The token is what they
# are declared to write, so that they are neither dropped nor reordered; its own memory is one
# element, so that no guard ever depends on the size of a batch.
_library = torch.library.Library("streamadapt", "DEF")
_library.define("observe_(Tensor x, Tensor(a!) token, int tap, int layer) -> ()")
_library.define("remap_(Tensor x, Tensor(a!) token, int tap, int layer) -> (Tensor, Tensor)")


class ForwardTap:
    """Stands in for a module's `forward`, on the instance.

    Args:
        module: whose.
    """

    is_streamadapt_tap = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Tensor]:
        """A copied model runs its own module and knows nothing of the tap."""
        twin = memo.get(id(self.module), self.module)
        return types.MethodType(type(self.module).forward, twin)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[nn.Module, str]]:
        """As for copies: while a pickle is loaded, the instance has only its class's `forward`."""
        return getattr, (self.module, "forward")


class LayerTap(ForwardTap):
    """Stands in for one layer's `forward`: shows the input to the armed step, then runs it."""

    def __init__(self, tap: ModelTap, index: int, module: nn.Module) -> None:
        super().__init__(module)
        self.tap = tap
        self.index = index
        self.replaced: Callable[..., Tensor] | None = module.__dict__.get("forward")
        self.original: Callable[..., Tensor] = module.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's own output, on an input that is moved where the step asks for it."""
        tap = self.tap
        if torch.compiler.is_compiling():
            if tap.remapping:
                scale, shift = torch.ops.streamadapt.remap_(
                    x.detach(), tap.token, tap.key, self.index
                )
                x = move(x, scale, shift)
            else:
                torch.ops.streamadapt.observe_(x.detach(), tap.token, tap.key, self.index)
        else:
            step = tap.step
            if step is not None and step.thread == get_ident():
                if step.fused is not None and self.replaced is None and not (args or kwargs):
                    normalised = step.fused(self.index, x)
                    if normalised is not None:
                        return normalised
                coefficients = step.visit(self.index, x)
                if coefficients is not None:
                    x = move(x, *coefficients)
        return self.original(x, *args, **kwargs)


class FoldedTap(LayerTap):
    """Stands in for a folded layer's `forward`: runs it, then shows its output to the step."""

    def __init__(self, tap: ModelTap, index: int, module: nn.Module) -> None:
        super().__init__(tap, index, module)
        self._packed = (
            None if self.replaced is not None else PackedConvolution.of(module, exact=False)
        )

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's own output, moved where the step asks for it."""
        tap = self.tap
        if torch.compiler.is_compiling():
            z = self.original(x, *args, **kwargs)
            if tap.remapping:
                scale, shift = torch.ops.streamadapt.remap_(
                    z.detach(), tap.token, tap.key, self.index
                )
                return move(z, scale, shift)
            torch.ops.streamadapt.observe_(z.detach(), tap.token, tap.key, self.index)
            return z
        step = tap.step
        armed = step is not None and step.thread == get_ident()
        found = None
        if self._packed is not None and tap.packs and (armed or tap.bound):
            found = self._packed(x) if ordinary() else None
        z = self.original(x, *args, **kwargs) if found is None else found
        if armed:
            assert step is not None
            coefficients = step.visit(self.index, z)
            if coefficients is not None:
                return move(z, *coefficients)
        return z


class ModelTap:
    """All layer taps of one model.

    Attributes:
        step: the armed step; None between steps, when the layers run untouched.
        remapping: whether compiled graphs must contain the input map.
        packs: folded convolutions may run on packed weights, in armed steps;
        bound: and in others, since the model holds a row's statistics.
    """

    def __init__(self, layers: Sequence[AdaptableLayer]) -> None:
        self.key = next(_keys)
        self.step: Step | None = None
        self.remapping = self.packs = self.bound = False
        device = layers[0].buffers[0].device
        with torch.inference_mode(False):
            self.token = torch.zeros(1, device=device)
        self._taps = [
            (FoldedTap if layer.kind == "folded" else LayerTap)(self, index, layer.module)
            for index, layer in enumerate(layers)
        ]
        _taps[self.key] = self

    def install(self) -> None:
        """Put every layer tap in place."""
        for tap in self._taps:
            tap.module.__dict__["forward"] = tap

    def remove(self) -> None:
        """Leave every layer as it was before `install`."""
        for tap in self._taps:
            if tap.module.__dict__.get("forward") is tap:
                del tap.module.__dict__["forward"]
                if tap.replaced is not None:
                    tap.module.__dict__["forward"] = tap.replaced

    @staticmethod
    def strip(copied: nn.Module) -> None:
        """Take what is left of a tap off a copied layer."""
        copied.__dict__.pop("forward", None)

    def moved(self, device: torch.device) -> None:
        """Follow the model to another device."""
        with torch.inference_mode(False):
            self.token = self.token.to(device)


def move(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`scale x + shift` for each frame, computed in fp32 at least, in `x`'s dtype."""
    shape = (*scale.shape, *([1] * (x.dim() - 2)))
    return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)


def verify_remappable(layer: AdaptableLayer) -> None:
    """Check that a layer's output depends on its statistics only through the normalisation.

    Runs the layer on a small random input twice: with other statistics, and with its own on the
    input moved to match. Needed before a per-frame step or a settling pass for anything but
    PyTorch's own types.

    Raises:
        UnsupportedModelError: the two differ.
    """
    if layer.kind in ("batchnorm", "folded"):
        return
    module, (mean, var) = layer.module, layer.buffers
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator).to(mean.device)

        spatial = (3,) * _spatial_dims(module)
        x = (draw(4, layer.channels, *spatial) * 4 - 2).to(mean.dtype)
        other = Moments(
            torch.zeros(()), mean.double() + draw(layer.channels) - 0.5, var.double() * 2 + 0.1
        )
        own = Moments(torch.zeros(()), mean.double(), var.double())
        eps = torch.full_like(own.mean, layer.eps)
        scale, shift = remap_coefficients(other, own, eps)
        forward = types.MethodType(type(module).forward, module)
        moved = forward(move(x, scale.expand(4, -1), shift.expand(4, -1)))
        try:
            module._buffers["running_mean"] = other.mean.to(mean.dtype)
            module._buffers["running_var"] = other.var.to(var.dtype)
            wanted = forward(x)
        finally:
            module._buffers["running_mean"] = mean
            module._buffers["running_var"] = var
        tolerance = 1e-3 if mean.dtype in (torch.float32, torch.float64) else 5e-2
        same = wanted.shape == moved.shape and torch.allclose(
            wanted.float(), moved.float(), rtol=tolerance, atol=tolerance
        )
    if not same:
        raise UnsupportedModelError(
            f"Layer {layer.name!r} ({type(module).__name__}) is not activation(batch_norm(x)): "
            "its output depends on the statistics in another way, so it cannot be normalised "
            "frame by frame, nor be measured in a settling pass. Leave it out with `layers=`, or "
            "use one stream in lagged timing and `estimator=EMA()`."
        )


def _spatial_dims(module: nn.Module) -> int:
    if isinstance(module, nn.BatchNorm1d):
        return 1
    return 3 if isinstance(module, nn.BatchNorm3d) else 2


def _armed(tap: int) -> Step | None:
    found = _taps.get(tap)
    step = None if found is None else found.step
    return step if step is not None and step.thread == get_ident() else None


def _observe(x: Tensor, token: Tensor, tap: int, layer: int) -> None:
    step = _armed(tap)
    if step is not None:
        step.visit(layer, x)


def _remap(x: Tensor, token: Tensor, tap: int, layer: int) -> tuple[Tensor, Tensor]:
    step = _armed(tap)
    coefficients = None if step is None else step.visit(layer, x)
    if coefficients is None:
        scale = x.new_ones(x.shape[:2], dtype=torch.float32)
        return scale, torch.zeros_like(scale)
    scale, shift = coefficients
    return scale.contiguous(), shift.contiguous()  # as the compiler was told


def _remap_shapes(x: Tensor, token: Tensor, tap: int, layer: int) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape[:2], dtype=torch.float32),
        x.new_empty(x.shape[:2], dtype=torch.float32),
    )


def _no_output(x: Tensor, token: Tensor, tap: int, layer: int) -> None:
    return None


_library.impl("observe_", _observe, "CompositeExplicitAutograd")
_library.impl("remap_", _remap, "CompositeExplicitAutograd")
torch.library.register_fake("streamadapt::observe_", _no_output, lib=_library)
torch.library.register_fake("streamadapt::remap_", _remap_shapes, lib=_library)
