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
from torch.nn.modules import module as module_hooks

from streamadapt.errors import one_line
from streamadapt.taps.inventory import AdaptableLayer, named_modules
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
        fused: normalises in one pass where it can, else returns None.
    """

    def __init__(
        self,
        chain: Chain,
        norm: nn.Module,
        finish: Callable[[Tensor], Tensor] | None,
        fused: Callable[[Chain, Tensor, Tensor | None], Tensor | None],
    ) -> None:
        super().__init__()
        self.chain = chain
        self._norm = [norm]  # not a submodule: it is the model's
        self._finish, self._fused = finish, fused

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The chain's result."""
        y = self._fused(self.chain, x, other)
        if y is not None:
            return y
        y = self._norm[0](x)
        if other is not None:
            y = y + other
        return y if self._finish is None else self._finish(y)


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
        run: the same with chains done in one pass.
        chains: in that.
        arguments: how many it takes.
    """

    owner: nn.Module
    name: str
    plain: Callable[..., Any]
    run: Callable[..., Any]
    chains: tuple[Chain, ...]
    arguments: int
    _modules: tuple[tuple[nn.Module, dict[str, Any], dict[str, Any]], ...]
    _attributes: dict[str, Any]
    _values: list[Any]
    _hooks: tuple[Mapping[int, Any], ...]

    def installed(self) -> None:
        """Whatever the module holds now is not looked at again until it is another object."""
        self._values[:] = self.owner.__dict__.values()

    def unchanged(self) -> bool:
        """Whether the module is still what was traced."""
        for module, children, parameters in self._modules:
            if module._modules != children or module._parameters.keys() != parameters.keys():
                return False
        if any(self._hooks) or module_hooks._global_forward_hooks:
            return False
        if module_hooks._global_forward_pre_hooks:
            return False
        held = self.owner.__dict__
        if len(held) == len(self._values) and all(map(operator.is_, held.values(), self._values)):
            return True
        return _attributes(self.owner) == self._attributes


def trace_chains(
    model: nn.Module,
    layers: Sequence[AdaptableLayer],
    *,
    fused: Callable[[Chain, Tensor, Tensor | None], Tensor | None] = lambda *_: None,
) -> tuple[list[Traced], dict[int, str]]:
    """Trace the modules that call `layers`, where that can be done and something comes of it.

    Args:
        model: that they are part of.
        layers: the adaptable ones.
        fused: normalises in one pass; see `ChainNode`.

    Returns:
        What was traced, and why other layers are alone, by their index.
    """
    index = {id(layer.module): k for k, layer in enumerate(layers) if layer.kind == "batchnorm"}
    found, alone = list[Traced](), dict[int, str]()
    for name, (owner, called) in owners_of(model, [layer.name for layer in layers]).items():
        traced = _trace(owner, name, index, fused)
        if isinstance(traced, Traced):
            found.append(traced)
        else:
            reason = f"{name or 'the model'} ({type(owner).__name__}) {traced}"
            alone |= dict.fromkeys(called, reason)
    return found, alone


def owners_of(model: nn.Module, layers: Sequence[str]) -> dict[str, tuple[nn.Module, list[int]]]:
    """Modules that call layers in their own `forward`, plain sequences inside them included.

    Args:
        model: that they are part of.
        layers: names.

    Returns:
        By name, each with the indices of the layers that it calls.
    """
    named = dict(named_modules(model))
    found: dict[str, tuple[nn.Module, list[int]]] = {}
    for index, name in enumerate(layers):
        while name:
            name = name.rpartition(".")[0]
            owner = named.get(name)
            if owner is None:
                break
            if not _is_sequence(owner) or not name:
                found.setdefault(name, (owner, []))[1].append(index)
                break
    return found


def _is_sequence(module: nn.Module) -> bool:
    plain = type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__
    hooks = module._forward_hooks or module._forward_pre_hooks
    return isinstance(module, nn.Sequential) and plain and not hooks


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
    owner: nn.Module,
    name: str,
    index: Mapping[int, int],
    fused: Callable[[Chain, Tensor, Tensor | None], Tensor | None],
) -> Traced | str:
    """What a module does, or why that is not known."""
    graph, arguments = traced_graph(owner), _arguments(owner)
    if isinstance(graph, str):
        return graph
    assert arguments is not None
    if any(node.op == "get_attr" for node in graph.nodes):
        return "uses tensors that it holds itself"
    traced = fx.GraphModule(owner, graph)
    plain = traced.forward  # compiled already: what is done to the graph below is not in it
    chains, watched = _fuse(traced, index, fused)
    if not any(chain.adds or chain.in_place or chain.low > -math.inf for chain in chains):
        return "does nothing with it that can be taken along"
    graph.lint()
    inside = [owner, *_sequences(owner)]
    hooks: list[Mapping[int, Any]] = []
    for module in [*watched, *inside[1:]]:
        hooks += [module._forward_hooks, module._forward_pre_hooks]
    return Traced(
        owner=owner,
        name=name,
        plain=plain,
        run=_program(traced),
        chains=tuple(chains),
        arguments=arguments,
        _modules=tuple((one, dict(one._modules), dict(one._parameters)) for one in inside),
        _attributes=_attributes(owner),
        _values=[],
        _hooks=tuple(hooks),
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
    """Plain sequences that a trace of `module` looks into."""
    for child in module._modules.values():
        if child is not None and _is_sequence(child):
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
    fused: Callable[[Chain, Tensor, Tensor | None], Tensor | None],
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
        graph.add_submodule(name, ChainNode(chain, norm, finish, fused))
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


def _program(module: fx.GraphModule) -> Callable[..., Any]:
    """A graph as a Python function.

    Unlike the graph module's own `forward` it looks no submodule up by name when it runs, which for
    small models is a good part of what a layer takes.
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
            call = bound(called.forward if isinstance(called, ChainNode) else called)
        elif node.op == "call_function":
            call = bound(node.target)
        else:
            call, passed = f"{passed[0]}.{node.target}", passed[1:]
        lines.append(f"{node.name} = {call}({', '.join(passed)})")
        gone = dead.get(node, []) + [node.name] * (node not in last_use)
        if gone:  # frees memory as early as the module's own code would
            lines.append(" = ".join(gone) + " = None")
    source = f"def run({', '.join(arguments)}):\n" + "".join(f"    {line}\n" for line in lines)
    exec(source, space)  # of a graph's own names
    program: Callable[..., Any] = space["run"]
    return program
