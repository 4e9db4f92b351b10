"""What modules do, as `torch.fx` traces it, and which modules call which layers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from streamadapt.errors import one_line
from streamadapt.taps.inventory import named_modules
from streamadapt.taps.tracing import OneThreadTracer


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
    if arguments_of(owner) is None:
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


class _Tracer(OneThreadTracer):
    """Looks into plain sequences of modules, and into nothing else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_sequence(m)


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


def sequences_in(module: nn.Module) -> Iterator[nn.Module]:
    """Plain sequences and lists that a trace of `module` looks into."""
    for child in module._modules.values():
        if child is not None and _is_transparent(child):
            yield child
            yield from sequences_in(child)


def arguments_of(owner: nn.Module) -> int | None:
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
