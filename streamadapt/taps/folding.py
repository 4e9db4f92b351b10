"""Finds BatchNorms that directly follow a convolution or linear layer, and folds them into it.

Modules that call BatchNorms are traced one at a time, as for chains. A BatchNorm is folded only
where the trace shows that it gets a layer's output as it is, and that nobody else does.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from streamadapt.errors import UnsupportedModelError
from streamadapt.taps.folded import FOLDED_TYPES, FoldedAway, FoldedLayer, folded_layer
from streamadapt.taps.graphs import owners_of
from streamadapt.taps.inventory import AdaptableLayer, take_inventory

_RTOL = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class FoldReport:
    """What became of a model's BatchNorm layers.

    Attributes:
        folded: name of each that was folded, and of the layer that it is part of now.
        kept: name of each that was not, and why.
    """

    folded: Mapping[str, str]
    kept: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.folded)} BatchNorm layers folded, {len(self.kept)} kept"]
        return "\n".join([*lines, *(f"  {name}: {why}" for name, why in self.kept.items())])


def fold(model: nn.Module, *, example: Any = None) -> nn.Module:
    """A plain copy of a model, in eval mode, with its BatchNorms folded where that can be done.

    A BatchNorm is part of the convolution or linear layer before it from then on, which is a plain
    layer to compilers and exporters, and which keeps what is needed to fold other statistics in:
    `StreamProcessor` adapts it. Layers go by their BatchNorm's name as before, so that a profile of
    the model fits its folded copy. Whatever cannot be folded stays as it is; the copy's
    `fold_report` says which and why.

    Args:
        model: any module; compiled ones are looked through. Is not changed.
        example: an input, or a tuple of them, to compare both on; None: nothing is run.

    Returns:
        The copy.

    Raises:
        UnsupportedModelError: no BatchNorm can be folded, or the copy's answer to `example` is
            another one.

    Example:
        >>> import torch, streamadapt as sa
        >>> conv = torch.nn.Conv2d(3, 4, 3)
        >>> folded = sa.fold(torch.nn.Sequential(conv, torch.nn.BatchNorm2d(4)))
        >>> print(folded.fold_report.folded)
        {'1': '0'}
    """
    inner = getattr(model, "_orig_mod", model)
    inventory = take_inventory(inner)
    if inventory.obstacles:
        raise UnsupportedModelError(str(inventory.problem))
    norms = [layer for layer in inventory.layers if layer.kind != "folded"]
    if not norms:
        why = "its BatchNorms are folded already" if inventory.layers else inventory.problem
        raise UnsupportedModelError(f"There is nothing to fold in {inventory.model}: {why}")
    twin: nn.Module = copy.deepcopy(inner).eval()
    found, kept = _pairs(inner, norms)
    for norm, layer in found.items():
        whole = folded_layer(twin.get_submodule(layer), twin.get_submodule(norm))
        _put(twin, layer, whole)
        _put(twin, norm, FoldedAway(whole))
    report = FoldReport(found, kept)
    if not found:
        raise UnsupportedModelError(f"No BatchNorm of {inventory.model} can be folded:\n{report}")
    twin.fold_report = report  # type: ignore[assignment]
    if example is not None:
        _compare(inner, twin, example, inventory.model)
    return twin


def _pairs(model: nn.Module, norms: list[AdaptableLayer]) -> tuple[dict[str, str], dict[str, str]]:
    """The layer before each BatchNorm, by name; and why there is none to others."""
    found: dict[str, str] = {}
    kept = {one.name: "nothing that was traced calls it" for one in norms}
    names = dict(nn.Module.named_modules(model, remove_duplicate=False))
    times = Counter(id(module) for module in names.values())
    owners = owners_of(model, [one.name for one in norms])
    calls = Counter(
        id(called)
        for one in owners.values()
        if isinstance(one.graph, fx.Graph)
        for called in _called_modules(one.module, one.graph)
    )
    for name, one in owners.items():
        owner, graph, prefix = one.module, one.graph, f"{name}." if name else ""
        for index in one.layers:
            norm = norms[index]
            if norm.kind != "batchnorm":
                kept[norm.name] = f"{type(norm.module).__name__} may do more than normalise"
            elif isinstance(graph, str):
                kept[norm.name] = f"{name or 'the model'} ({type(owner).__name__}) {graph}"
            else:
                layer = _before(owner, graph, norm.name.removeprefix(prefix))
                if isinstance(layer, fx.Node):
                    whole = prefix + str(layer.target)
                    modules = names[whole], norm.module
                    if any(times[id(one)] > 1 or calls[id(one)] > 1 for one in modules):
                        kept[norm.name] = f"it or {whole} is used in several places"
                    else:
                        found[norm.name] = whole
                        del kept[norm.name]
                else:
                    kept[norm.name] = layer
    return found, kept


def _called_modules(owner: nn.Module, graph: fx.Graph) -> Iterator[nn.Module]:
    for node in graph.nodes:
        if node.op == "call_module":
            yield owner.get_submodule(str(node.target))


def _before(owner: nn.Module, graph: fx.Graph, norm: str) -> fx.Node | str:
    """The call of the layer that a BatchNorm can be folded into, or why there is none."""
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == norm]
    if len(calls) != 1:
        return "it is not called exactly once"
    call = calls[0]
    before = call.args[0] if len(call.args) == 1 and not call.kwargs else None
    if not isinstance(before, fx.Node) or before.op != "call_module":
        return "it does not follow a layer directly"
    layer = owner.get_submodule(str(before.target))
    if type(layer) not in FOLDED_TYPES:
        return f"it follows a {type(layer).__name__}, not a convolution or linear layer"
    if len(before.users) > 1:
        return f"others read the output of {before.target} as well"
    if "weight" not in layer._parameters or "bias" not in layer._parameters:
        return f"the weight of {before.target} is made anew by a hook"
    for module in (layer, owner.get_submodule(norm)):
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return "it or the layer before it has hooks"
    if isinstance(layer, nn.Linear) and isinstance(owner.get_submodule(norm), nn.BatchNorm1d):
        return before
    return before if not isinstance(layer, nn.Linear) else "it does not fit the layer before it"


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent)._modules[leaf] = module


def _compare(model: nn.Module, twin: nn.Module, example: Any, name: str) -> None:
    """Refuse a copy that answers otherwise."""
    inputs = example if isinstance(example, tuple) else (example,)
    whole = copy.deepcopy(model).eval()
    with torch.no_grad():
        pairs = zip(
            *(pytree.tree_leaves(one(*inputs)) for one in (whole, twin)),
            strict=True,
        )
        for wanted, got in pairs:
            if not isinstance(wanted, torch.Tensor) or not wanted.is_floating_point():
                continue
            scale = float(wanted.abs().max()) if wanted.numel() else 0.0
            rtol = _RTOL.get(wanted.dtype, 2e-1)
            if not torch.allclose(wanted, got, rtol=rtol, atol=rtol * scale):
                apart = float((wanted - got).abs().max())
                raise UnsupportedModelError(
                    f"Folded, {name} answers `example` otherwise, by {apart:.3g} of {scale:.3g}: "
                    "its BatchNorms are used in a way that a trace does not show. Use the model "
                    "as it is."
                )


def folded_layers(model: nn.Module) -> list[FoldedLayer]:
    """All folded layers of a model."""
    return [one for one in nn.Module.modules(model) if isinstance(one, FoldedLayer)]
