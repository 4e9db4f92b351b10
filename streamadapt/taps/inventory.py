"""What a model has to adapt, and what stands in the way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamadapt.errors import ModelStateError, UnsupportedModelError
from streamadapt.fingerprint import statistics_fingerprint
from streamadapt.taps.folded import FoldedAway

Kind = Literal["batchnorm", "subclass", "frozen", "folded"]
LayerFilter = Sequence[str] | Callable[[str, nn.Module], bool]

PLAIN_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_FROZEN_BUFFERS = {"weight", "bias", "running_mean", "running_var"}
_NORM_NAME = re.compile(r"(^|[._])(bn|norm|batch_?norm)\d*$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class AdaptableLayer:
    """A layer whose `running_mean` and `running_var` can be adapted.

    Attributes:
        name: where it stands in the model.
        module: the layer.
        kind: `batchnorm` (PyTorch's own), `subclass` (may do more, such as an activation),
            `frozen` (recognised by its buffers, as torchvision's `FrozenBatchNorm2d`), or `folded`
            (by `sa.fold`; named as its BatchNorm was, and `module` is what it is folded into).
    """

    name: str
    module: nn.Module
    kind: Kind

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.buffers[0].numel())

    @property
    def eps(self) -> float:
        """Added to the variance before the root."""
        return float(getattr(self.module, "eps", 0.0))

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """The module's own mean and variance, whatever they are at the moment."""
        mean, var = self.module._buffers["running_mean"], self.module._buffers["running_var"]
        assert mean is not None and var is not None
        return mean, var

    @property
    def training(self) -> bool:
        """Whether it would normalise by batch statistics and change its buffers."""
        return self.kind not in ("frozen", "folded") and self.module.training

    def require_inference(self) -> None:
        """Refuse a layer in training mode.

        Raises:
            ModelStateError: naming the layer.
        """
        if self.training:
            raise ModelStateError(
                f"BatchNorm {self.name!r} is in training mode: it would normalise by the batch "
                "and overwrite its statistics. Call model.eval() first."
            )


@dataclass(frozen=True, eq=False)
class Inventory:
    """Everything that bears on adaptation, found in one walk.

    Attributes:
        model: class name of the model.
        layers: the adaptable layers, in registration order.
        excluded: names of layers that the caller's filter left out.
        without_statistics: names of BatchNorm layers that have no running statistics.
        folded: names of places where a BatchNorm seems to have been fused into its convolution.
        others: count of other normalisation layers by class name; they have nothing to adapt.
        obstacles: reasons why the model cannot be wrapped as it is, each with its remedy.
    """

    model: str
    layers: tuple[AdaptableLayer, ...]
    excluded: tuple[str, ...] = ()
    without_statistics: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    others: dict[str, int] = field(default_factory=dict)
    obstacles: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Channels of all adaptable layers."""
        return sum(layer.channels for layer in self.layers)

    @property
    def problem(self) -> str | None:
        """Why the model cannot be wrapped, with what was found and what to do; None if it can."""
        if self.obstacles:
            return f"{self.model} cannot be adapted: " + " ".join(self.obstacles)
        if self.without_statistics:
            verb = "has" if len(self.without_statistics) == 1 else "have"
            return (
                f"{_several(self.without_statistics, 'BatchNorm layer')} of {self.model} "
                f"{verb} no running statistics (track_running_stats=False): they normalise by the "
                "batch at inference, so frames of one batch change each other. Train or load the "
                "model with running statistics, or leave these layers out with `layers=`."
            )
        if self.layers:
            return None
        found = []
        if self.excluded:
            found.append(f"{_several(self.excluded, 'BatchNorm layer')} left out by `layers=`")
        if self.folded:
            found.append(
                f"{_several(self.folded, 'place')} where a BatchNorm seems to have been fused "
                "into its convolution; wrap the model before fusing or folding it (Ultralytics: "
                "fuse=False; torch.ao: before fuse_modules)"
            )
        found += [
            f"{count} {name} layer{'s' * (count > 1)}: statistics come from each input, there is "
            "nothing to adapt"
            for name, count in self.others.items()
        ]
        return (
            f"{self.model} has no BatchNorm layer with running statistics. Found: "
            + ("; ".join(found) if found else "no normalisation layer at all")
            + "."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left unadapted although the model as a whole can be wrapped."""
        notes = []
        if self.folded:
            notes.append(f"not adapted, already fused: {', '.join(self.folded)}")
        if self.excluded:
            notes.append(f"left out by `layers=`: {', '.join(self.excluded)}")
        notes += [
            f"nothing to adapt in {count} {name} layer{'s' * (count > 1)}"
            for name, count in self.others.items()
        ]
        return tuple(notes)

    def require_adaptable(self) -> None:
        """Raise what stands in the way.

        Raises:
            UnsupportedModelError: with what was found and what to do.
        """
        if self.problem is not None:
            raise UnsupportedModelError(self.problem)


def fingerprint_of(inventory: Inventory) -> str:
    """Which statistics a model has; see `statistics_fingerprint`."""
    pairs = [[buffer.detach().float().cpu() for buffer in one.buffers] for one in inventory.layers]
    source = torch.stack([torch.cat([pair[k] for pair in pairs]) for k in (0, 1)])
    described = [(one.name, one.channels, one.eps) for one in inventory.layers]
    return statistics_fingerprint(described, source.numpy())


def take_inventory(model: nn.Module, *, layers: LayerFilter | None = None) -> Inventory:
    """Walk a model once and sort out its normalisation layers.

    Args:
        model: any module; `torch.compile`d models are looked through.
        layers: adapt only these: names, or a predicate of `(name, module)`. None: all.

    Raises:
        UnsupportedModelError: `layers` names something that is not an adaptable layer.
    """
    if isinstance(layers, str):
        layers = [layers]
    found: list[AdaptableLayer] = []
    excluded: list[str] = []
    stateless: list[str] = []
    folded: list[str] = []
    scripted: list[str] = []
    others: Counter[str] = Counter()
    for name, module in named_modules(model):
        if isinstance(module, torch.jit.ScriptModule):
            scripted.append(name)
            continue
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm) or (
            "InstanceNorm" in type(module).__name__
            and getattr(module, "running_mean", None) is None
        ):
            others[type(module).__name__] += 1
            continue
        kind: Kind | None = None
        if isinstance(module, FoldedAway):
            kind, module = "folded", module.layer
        elif _seems_folded(name, module):
            folded.append(name)
            continue
        else:
            kind = _kind_of(module)
        if kind is None:
            continue
        if not _chosen(name, module, layers):
            excluded.append(name)
        elif module._buffers.get("running_mean") is None:
            stateless.append(name)
        else:
            found.append(AdaptableLayer(name, module, kind))
    if layers is not None and not callable(layers):
        known = {layer.name for layer in found} | set(stateless)
        unknown = [name for name in layers if name not in known]
        if unknown:
            raise UnsupportedModelError(
                f"`layers` names {unknown[0]!r}, which is not an adaptable layer of "
                f"{_class_name(model)}. Adaptable: {', '.join(sorted(known | set(excluded)))}."
            )
    return Inventory(
        model=_class_name(model),
        layers=tuple(found),
        excluded=tuple(excluded),
        without_statistics=tuple(stateless),
        folded=tuple(folded),
        others=dict(others),
        obstacles=tuple(_obstacles(model, found, scripted)),
    )


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`model.named_modules()`, also where a model shadows it, without `torch.compile`'s prefix."""
    for name, module in nn.Module.named_modules(model):
        yield ".".join(part for part in name.split(".") if part != "_orig_mod"), module


def _kind_of(module: nn.Module) -> Kind | None:
    if isinstance(module, _BatchNorm):
        return "batchnorm" if type(module) in PLAIN_TYPES else "subclass"
    own = {name for name, buffer in module._buffers.items() if buffer is not None}
    if own - {"num_batches_tracked"} == _FROZEN_BUFFERS and not module._parameters:
        return "frozen"
    return None


def _seems_folded(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.Identity):
        return bool(_NORM_NAME.search(name))
    kind = type(module)
    if "intrinsic" in kind.__module__ and ("Conv" in kind.__name__ or "BN" in kind.__name__):
        return True
    return hasattr(module, "forward_fuse") and not hasattr(module, "bn")


def _chosen(name: str, module: nn.Module, layers: LayerFilter | None) -> bool:
    if layers is None:
        return True
    return layers(name, module) if callable(layers) else name in layers


def _wrapped_already(layers: Sequence[AdaptableLayer]) -> bool:
    return any(
        getattr(layer.module.__dict__.get("forward"), "is_streamadapt_tap", False)
        for layer in layers
    )


def _obstacles(
    model: nn.Module, layers: Sequence[AdaptableLayer], scripted: Sequence[str]
) -> Iterator[str]:
    if scripted:
        where = "it is" if scripted[0] == "" else f"its part {scripted[0]!r} is"
        yield (
            f"{where} a TorchScript module, whose layers cannot be observed and which may have "
            "its statistics frozen in. Wrap the nn.Module it was made from."
        )
        return
    if isinstance(model, nn.DataParallel):
        yield (
            "nn.DataParallel runs throw-away copies of its layers. Wrap `model.module`, one "
            "processor a device."
        )
    if any(isinstance(layer.module, nn.modules.lazy.LazyModuleMixin) for layer in layers):
        yield "it has lazy BatchNorm layers without a shape yet. Run it once on an example first."
        return
    if _wrapped_already(layers):
        yield "it is wrapped already. Call unwrap() on its processor first."
        return
    devices = sorted({str(layer.buffers[0].device) for layer in layers})
    if "meta" in devices:
        yield "its BatchNorm buffers are on the meta device. Load the weights first."
    elif len(devices) > 1:
        yield (
            f"its BatchNorm layers are spread over {', '.join(devices)}. Statistics live in one "
            "tensor: put the model on one device, or wrap its parts."
        )
    seen: dict[int, str] = {}
    for layer in layers:
        for buffer in layer.buffers:
            if id(buffer) in seen:
                yield (
                    f"{layer.name} and {seen[id(buffer)]} share one statistics tensor. Give each "
                    "its own (clone the buffers)."
                )
                return
            seen[id(buffer)] = layer.name
    if any(_freezes(module) for _, module in named_modules(model)):
        yield (
            "it is compiled with Inductor's `freezing`, which bakes the statistics in. Set it to "
            "False and compile again."
        )


def _freezes(module: nn.Module) -> bool:
    """Whether the compiler makes constants of a module's buffers, by its own option or by all."""
    if not _is_compiled(module):
        return False
    # Compiled in place, a module keeps the compiler's context in a closure and nowhere else.
    cells = getattr(getattr(module, "_compiled_call_impl", None), "__closure__", None) or ()
    contexts = [getattr(module, "dynamo_ctx", None), *(cell.cell_contents for cell in cells)]
    for context in contexts:
        own = getattr(context, "compiler_config", None)
        if isinstance(own, dict) and own.get("freezing"):
            return True
    import torch._inductor.config as inductor

    return bool(getattr(inductor, "freezing", False))


def _is_compiled(module: nn.Module) -> bool:
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
    )


def _class_name(model: nn.Module) -> str:
    inner = getattr(model, "_orig_mod", model)
    return type(inner).__name__


def _several(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    plural = what if len(names) == 1 else f"{what}s"
    return f"{len(names)} {plural} ({shown})"
