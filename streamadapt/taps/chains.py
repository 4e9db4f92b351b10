"""Finds what follows a BatchNorm and can be done in the same pass: additions and activations.

Modules that call BatchNorms are traced with `torch.fx`, one at a time and only down to the modules
they call themselves, so that one which cannot be traced leaves the others alone. What a trace
cannot tell apart from a constant (attributes, submodules, hooks) is looked at before every call:
where anything changed, the module's own `forward` runs.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from streamadapt.errors import one_line
from streamadapt.taps.contents import Contents
from streamadapt.taps.inventory import AdaptableLayer, named_modules
from streamadapt.taps.packed import PackedConvolution
from streamadapt.taps.tracing import OneThreadTracer

_FRESH = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_RELU = (0.0, math.inf)
_RELU6 = (0.0, 6.0)
_FUNCTIONS: Mapping[Any, tuple[float, float]] = {
    F.relu: _RELU,
    torch.relu: _RELU,
    torch.relu_: _RELU,
    F.relu_: _RELU,
    F.relu6: _RELU6,
    "relu": _RELU,
    "relu_": _RELU,
}
_ADDITIONS = (operator.add, torch.add, "add")
_ADDITIONS_IN_PLACE = (operator.iadd, "add_")
Fused = Callable[..., Tensor | None]  # see `taps.kernels.Normalisation`
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, eq=False)
class Chain:
    """A BatchNorm and what is done with its output.

    Attributes:
        layer: index of the BatchNorm.
        adds: another tensor is added.
        low: least value of the result.
        high: largest value of the result.
        in_place: the input is a convolution's output that nobody else reads.
    """

    layer: int
    adds: bool
    low: float
    high: float
    in_place: bool

    @property
    def manner(self) -> str:
        """In words."""
        parts = ["BatchNorm"] + ["addition"] * self.adds
        if (self.low, self.high) != (-math.inf, math.inf):
            named = {_RELU: "ReLU", _RELU6: "ReLU6"}.get((self.low, self.high), "clamp")
            parts.append(named)
        return " + ".join(parts) + (", in place" if self.in_place else "")


class ChainNode(nn.Module):
    """Stands in a traced graph for a chain; a module because such are what graphs call.

    Args:
        chain: that it is.
        norm: the BatchNorm.
        finish: the activation; None: there is none.
    """

    def __init__(
        self, chain: Chain, norm: nn.Module, finish: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__()
        self.chain = chain
        self._norm = [norm]  # not a submodule: it is the model's
        self._finish = finish

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The chain's result, where it cannot be had in one pass."""
        y = self._norm[0](x)
        if other is not None:
            y = y + other
        return y if self._finish is None else self._finish(y)


class PackedNode(nn.Module):
    """Stands in a traced graph for a convolution whose weight is packed.

    Args:
        module: the convolution.
        packed: runs it where that can be done, else returns None.
    """

    def __init__(self, module: nn.Module, packed: PackedConvolution) -> None:
        super().__init__()
        self.packed = packed
        self._module = [module]  # not a submodule: it is the model's

    def forward(self, x: Tensor) -> Tensor:
        """The convolution's result, where it has to run itself."""
        result: Tensor = self._module[0](x)
        return result


class _Tracer(OneThreadTracer):
    """Looks into plain sequences of modules, and into nothing else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_sequence(m)


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


@dataclass(frozen=True, eq=False)
class Owner:
    """A module that calls layers in its own `forward`, and what else that does.

    Attributes:
        module: it.
        layers: indices of those that it calls.
        graph: what it does, down to the modules that it calls; or why that is not known.
    """

    module: nn.Module
    layers: list[int]
    graph: fx.Graph | str


def owners_of(model: nn.Module, layers: Sequence[str]) -> dict[str, Owner]:
    """Modules that call layers, by name; plain sequences and lists belong to whoever calls them.

    Of an owner that cannot be traced the outermost sequences are looked at one by one.

    Args:
        model: that they are part of.
        layers: names.
    """
    named = dict(named_modules(model))
    called: dict[str, list[int]] = {}
    for index, name in enumerate(layers):
        while name:
            name = name.rpartition(".")[0]
            module = named.get(name)
            if module is None:
                break
            if not _is_transparent(module) or not name:
                called.setdefault(name, []).append(index)
                break
    found: dict[str, Owner] = {}
    for name, indices in called.items():
        graph, alone = traced_graph(named[name]), indices
        if isinstance(graph, str):
            alone = []
            for index in indices:
                inner = _outermost_sequence(named, name, layers[index])
                if inner is None:
                    alone.append(index)
                elif inner in found:
                    found[inner].layers.append(index)
                else:
                    found[inner] = Owner(named[inner], [index], traced_graph(named[inner]))
        if alone:
            found[name] = Owner(named[name], alone, graph)
    return found


def _is_sequence(module: nn.Module) -> bool:
    plain = type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__
    hooks = module._forward_hooks or module._forward_pre_hooks
    return isinstance(module, nn.Sequential) and plain and not hooks


def _is_transparent(module: nn.Module) -> bool:
    """Whether whoever holds a module calls what is in it."""
    return _is_sequence(module) or type(module) in (nn.ModuleList, nn.ModuleDict)


def _outermost_sequence(named: Mapping[str, nn.Module], owner: str, layer: str) -> str | None:
    """Name of the first sequence on the way from an owner to a layer."""
    path = owner
    for part in layer.removeprefix(f"{owner}." if owner else "").split(".")[:-1]:
        path = f"{path}.{part}" if path else part
        if _is_sequence(named[path]):
            return path
    return None


def traced_graph(owner: nn.Module) -> fx.Graph | str:
    """What a module does, down to the modules that it calls itself; or why that is not known."""
    if "forward" in owner.__dict__ or isinstance(owner, fx.GraphModule | torch.jit.ScriptModule):
        return "has a `forward` of its own already"
    if _arguments(owner) is None:
        return "takes optional or named arguments"
    kept, problem = _Kept(owner), None
    try:
        with torch.random.fork_rng(devices=[]):
            graph = _Tracer(param_shapes_constant=True).trace(owner)
    except Exception as error:  # whatever it does with what is no tensor; it runs as it is
        problem = f"cannot be traced: {one_line(error)}"
    if kept.put_back():
        return "keeps what it sees"
    return graph if problem is None else problem


def _trace(
    called: Owner,
    name: str,
    index: Mapping[int, int],
    fused: Callable[[], Fused],
    packed: Callable[[nn.Module], PackedConvolution | None],
) -> Traced | str:
    """What a module does, or why that is not known."""
    owner, graph = called.module, called.graph
    arguments = _arguments(owner)
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
    fused_alone = _program(traced, fused)
    contents = _pack(traced, packed)
    inside = [owner, *_sequences(owner)]
    for module in inside:
        contents.hold(module._modules)
        contents.size(module._parameters)
    for module in [*watched, *inside[1:]]:
        contents.unhooked(module)
    return Traced(
        owner=owner,
        name=name,
        plain=plain,
        run=_program(traced, fused),
        fused=fused_alone,
        chains=tuple(chains),
        arguments=arguments,
        contents=contents,
        _attributes=_attributes(owner),
        _values=[],
    )


class _Kept:
    """What a module holds, to be put back when its `forward` has put something else there."""

    def __init__(self, owner: nn.Module) -> None:
        self._owner = owner
        self._values = dict(owner.__dict__)
        self._contents = [
            (value, copy.copy(value))
            for value in self._values.values()
            if isinstance(value, list | dict | set)
        ]

    def put_back(self) -> bool:
        """Whether anything was changed."""
        held, values = self._owner.__dict__, self._values
        changed = held.keys() != values.keys() or any(
            held[key] is not value for key, value in values.items()
        )
        if changed:
            held.clear()
            held.update(values)
        for value, content in self._contents:
            if len(value) == len(content) and all(
                one is other for one, other in zip(_items(value), _items(content), strict=True)
            ):
                continue
            changed = True
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        return changed


def _items(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _sequences(module: nn.Module) -> Iterator[nn.Module]:
    """Plain sequences and lists that a trace of `module` looks into."""
    for child in module._modules.values():
        if child is not None and _is_transparent(child):
            yield child
            yield from _sequences(child)


def _arguments(owner: nn.Module) -> int | None:
    """How many arguments a module takes; None where some have defaults, or names of their own."""
    try:
        parameters = inspect.signature(type(owner).forward).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = {one.kind for one in parameters}
    if kinds != {inspect.Parameter.POSITIONAL_OR_KEYWORD}:
        return None
    if any(one.default is not inspect.Parameter.empty for one in parameters):
        return None
    return len(parameters) - 1


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
            return _RELU, module
        if type(module) in (nn.ReLU6, nn.Hardtanh) and len(node.args) == 1:
            own = vars(module)
            return (float(own["min_val"]), float(own["max_val"])), module
        return None
    if node.op not in ("call_function", "call_method"):
        return None
    bounds = _FUNCTIONS.get(node.target)
    if bounds is None or len(node.args) != 1 or set(node.kwargs) - {"inplace"}:
        return None
    return bounds, F.relu6 if bounds == _RELU6 else torch.relu


def _program(module: fx.GraphModule, fused: Callable[[], Fused]) -> Callable[..., Any]:
    """A graph as a Python function.

    Unlike the graph module's own `forward` it looks no submodule up by name when it runs, and calls
    what is fused or packed without anything in between: for small models that is a good part of
    what a layer takes.
    """
    last_use: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        for used in node.all_input_nodes:
            last_use[used] = node
    dead: dict[fx.Node, list[str]] = {}
    for used, node in last_use.items():
        dead.setdefault(node, []).append(used.name)
    space: dict[str, Any] = {}
    arguments, lines = [], []

    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        if isinstance(value, tuple):
            return "(" + "".join(text(one) + ", " for one in value) + ")"
        if isinstance(value, slice):
            return f"slice({text(value.start)}, {text(value.stop)}, {text(value.step)})"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {text(one)}" for key, one in value.items()) + "}"
        return bound(value)

    def bound(value: Any) -> str:
        name = f"_bound_{len(space)}"
        space[name] = value
        return name

    def freed(node: fx.Node) -> list[str]:
        """Frees memory as early as the module's own code would."""
        gone = dead.get(node, []) + [node.name] * (node not in last_use)
        return [" = ".join(gone) + " = None"] if gone else []

    space["_current"] = fused
    lines.append("_fused = _current()")
    for node in module.graph.nodes:
        passed = [text(one) for one in node.args]
        passed += [f"{key}={text(one)}" for key, one in node.kwargs.items()]
        if node.op == "placeholder":
            arguments.append(node.name)
            continue
        if node.op == "output":
            lines.append(f"return {passed[0]}")
            continue
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            ours = isinstance(called, ChainNode | PackedNode)
            call = bound(called.forward if ours else called)
            first = None
            if isinstance(called, ChainNode):
                one = called.chain
                rest = (one.layer, one.low, one.high, one.in_place)
                layer, low, high, over = map(bound, rest)
                added = passed[1] if one.adds else "None"
                first = f"_fused({layer}, {passed[0]}, {added}, {low}, {high}, {over})"
            elif isinstance(called, PackedNode):
                first = f"{bound(called.packed)}({passed[0]})"
            if first is not None:
                lines.append(f"{node.name} = {first}")
                lines.append(f"if {node.name} is None:")
                lines.append(f"    {node.name} = {call}({', '.join(passed)})")
                lines += freed(node)
                continue
        elif node.op == "call_function":
            call = bound(node.target)
        else:
            call, passed = f"{passed[0]}.{node.target}", passed[1:]
        lines.append(f"{node.name} = {call}({', '.join(passed)})")
        lines += freed(node)
    source = f"def run({', '.join(arguments)}):\n" + "".join(f"    {line}\n" for line in lines)
    exec(source, space)  # of a graph's own names
    program: Callable[..., Any] = space["run"]
    return program
