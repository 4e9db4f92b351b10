"""Finds what follows a BatchNorm and can be done in the same pass: additions and activations.

Modules that call BatchNorms are traced with `torch.fx`, one at a time and only down to the modules
they call themselves, so that one which cannot be traced leaves the others alone. What a trace
cannot tell apart from a constant (attributes, submodules, hooks) is looked at before every call:
where anything changed, the module's own `forward` runs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from streamadapt.taps.contents import Contents
from streamadapt.taps.graphs import Owner, arguments_of, owners_of, sequences_in
from streamadapt.taps.inventory import AdaptableLayer
from streamadapt.taps.packed import PackedConvolution
from streamadapt.taps.program import (
    RELU,
    RELU6,
    Chain,
    ChainNode,
    Fused,
    PackedNode,
    as_function,
)

_FRESH = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_FUNCTIONS: Mapping[Any, tuple[float, float]] = {
    F.relu: RELU,
    torch.relu: RELU,
    torch.relu_: RELU,
    F.relu_: RELU,
    F.relu6: RELU6,
    "relu": RELU,
    "relu_": RELU,
}
_ADDITIONS = (operator.add, torch.add, "add")
_ADDITIONS_IN_PLACE = (operator.iadd, "add_")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, eq=False)
class Traced:
    """A module, and what it does.

    Attributes:
        owner: the module.
        name: where it stands in the model.
        plain: runs its operations as traced.
        run: the same with chains done in one pass, on packed weights, while `ordinary()`.
        fused: with chains done in one pass.
        chains: in those.
        arguments: how many it takes.
        contents: what else must be as it was when it was traced, looked at before each step.
    """

    owner: nn.Module
    name: str
    plain: Callable[..., Any]
    run: Callable[..., Any]
    fused: Callable[..., Any]
    chains: tuple[Chain, ...]
    arguments: int
    contents: Contents
    _attributes: dict[str, Any]
    _values: list[Any]

    def installed(self) -> None:
        """Whatever the module holds now is not looked at again until it is another object."""
        self._values[:] = self.owner.__dict__.values()

    def unchanged(self) -> bool:
        """Whether the attributes that the trace took for constants are still the same."""
        held = self.owner.__dict__
        if len(held) == len(self._values) and all(map(operator.is_, held.values(), self._values)):
            return True
        return _attributes(self.owner) == self._attributes


def trace_chains(
    model: nn.Module,
    layers: Sequence[AdaptableLayer],
    *,
    fused: Callable[[], Fused] = lambda: lambda *_: None,
    packed: Callable[[nn.Module], PackedConvolution | None] = lambda _: None,
) -> tuple[list[Traced], dict[int, str]]:
    """Trace the modules that call `layers`, where that can be done and something comes of it.

    Args:
        model: that they are part of.
        layers: the adaptable ones.
        fused: normalises in one pass; see `ChainNode`.
        packed: another way to run a convolution; None: there is none.

    Returns:
        What was traced, and why other layers are alone, by their index.
    """
    index = {id(layer.module): k for k, layer in enumerate(layers) if layer.kind == "batchnorm"}
    found, alone = list[Traced](), dict[int, str]()
    for name, owner in owners_of(model, [layer.name for layer in layers]).items():
        traced = _trace(owner, name, index, fused, packed)
        if isinstance(traced, Traced):
            found.append(traced)
        else:
            reason = f"{name or 'the model'} ({type(owner.module).__name__}) {traced}"
            alone |= dict.fromkeys(owner.layers, reason)
    return found, alone


def _trace(
    called: Owner,
    name: str,
    index: Mapping[int, int],
    fused: Callable[[], Fused],
    packed: Callable[[nn.Module], PackedConvolution | None],
) -> Traced | str:
    """What a module does, or why that is not known."""
    owner, graph = called.module, called.graph
    arguments = arguments_of(owner)
    if isinstance(graph, str):
        return graph
    assert arguments is not None
    if any(node.op == "get_attr" for node in graph.nodes):
        return "uses tensors that it holds itself"
    traced = fx.GraphModule(owner, graph)
    plain = traced.forward  # compiled already: what is done to the graph below is not in it
    chains, watched = _fuse(traced, index)
    if not any(chain.adds or chain.in_place or chain.low > -math.inf for chain in chains):
        return "does nothing with it that can be taken along"
    graph.lint()
    fused_alone = as_function(traced, fused)
    contents = _pack(traced, packed)
    inside = [owner, *sequences_in(owner)]
    for module in inside:
        contents.hold(module._modules)
        contents.size(module._parameters)
    for module in [*watched, *inside[1:]]:
        contents.unhooked(module)
    return Traced(
        owner=owner,
        name=name,
        plain=plain,
        run=as_function(traced, fused),
        fused=fused_alone,
        chains=tuple(chains),
        arguments=arguments,
        contents=contents,
        _attributes=_attributes(owner),
        _values=[],
    )


def _attributes(owner: nn.Module) -> dict[str, Any]:
    """What a trace took for a constant."""
    return {key: value for key, value in owner.__dict__.items() if isinstance(value, _PLAIN)}


def _fuse(
    graph: fx.GraphModule,
    index: Mapping[int, int],
) -> tuple[list[Chain], list[nn.Module]]:
    """Put chains in place; returns them, and the modules that they stand for."""
    chains: list[Chain] = []
    watched: list[nn.Module] = []
    # The last one first: of two that are added, it takes the other's result along.
    for node in reversed(list(graph.graph.nodes)):
        norm = _called(graph, node)
        if norm is None or id(norm) not in index or len(node.args) != 1 or node.kwargs:
            continue
        stood_for, last, other = [norm], node, None
        follows = _only_user(node)
        added = None if follows is None else _added(follows, node)
        if follows is not None and added is not None:
            other, last = added, follows
            follows = _only_user(last)
        bounds, finish = (-math.inf, math.inf), None
        if follows is not None:
            found = _activation(graph, follows)
            if found is not None:
                bounds, finish = found
                module = _called(graph, follows)
                stood_for += [] if module is None else [module]
                last = follows
        x = node.args[0]
        producer = _called(graph, x) if isinstance(x, fx.Node) else None
        fresh = producer is not None and type(producer) in _FRESH and len(x.users) == 1
        if fresh and producer is not None:
            stood_for.append(producer)
        chain = Chain(index[id(norm)], other is not None, *bounds, in_place=fresh)
        name = f"streamadapt_chain_{len(chains)}"
        graph.add_submodule(name, ChainNode(chain, norm, finish))
        with graph.graph.inserting_before(last):
            new = graph.graph.call_module(name, (x,) if other is None else (x, other))
        last.replace_all_uses_with(new)
        while last is not node:
            before = next(one for one in last.all_input_nodes if one is not other)
            graph.graph.erase_node(last)
            last = before
        graph.graph.erase_node(node)
        chains.append(chain)
        watched += stood_for
    return chains, watched


def _pack(
    graph: fx.GraphModule, packed: Callable[[nn.Module], PackedConvolution | None]
) -> Contents:
    """Put packed convolutions in place; returns what of them must not change."""
    contents = Contents()
    for count, node in enumerate(list(graph.graph.nodes)):
        module = _called(graph, node)
        if module is None or len(node.args) != 1 or node.kwargs:
            continue
        found = packed(module) if type(module) is nn.Conv2d else None
        if found is not None and "forward" not in module.__dict__:
            name = f"streamadapt_packed_{count}"
            graph.add_submodule(name, PackedNode(module, found))
            node.target = name
            contents.size(module.__dict__)
            contents.unhooked(module)
            for key, value in found.settings().items():
                contents.keep(module.__dict__, key, value)
    return contents


def _called(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    if node.op != "call_module":
        return None
    return graph.get_submodule(str(node.target))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(node: fx.Node, norm: fx.Node) -> fx.Node | None:
    """What is added to a BatchNorm's output; None: `node` is something else."""
    in_place = node.target in _ADDITIONS_IN_PLACE
    if node.op not in ("call_function", "call_method") or node.kwargs or len(node.args) != 2:
        return None
    if node.target not in _ADDITIONS and not (in_place and node.args[0] is norm):
        return None
    one, other = node.args
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node) or one is other:
        return None
    return other if one is norm else one


def _activation(
    graph: fx.GraphModule, node: fx.Node
) -> tuple[tuple[float, float], Callable[[Tensor], Tensor]] | None:
    """Bounds of a clamping activation, and how it is done otherwise; None: it is something else."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if type(module) is nn.ReLU:
            return RELU, module
        if type(module) in (nn.ReLU6, nn.Hardtanh) and len(node.args) == 1:
            own = vars(module)
            return (float(own["min_val"]), float(own["max_val"])), module
        return None
    if node.op not in ("call_function", "call_method"):
        return None
    bounds = _FUNCTIONS.get(node.target)
    if bounds is None or len(node.args) != 1 or set(node.kwargs) - {"inplace"}:
        return None
    return bounds, F.relu6 if bounds == RELU6 else torch.relu
