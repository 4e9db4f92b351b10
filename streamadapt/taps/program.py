"""Traced modules as Python functions, with chains done in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from streamadapt.taps.packed import PackedConvolution

Fused = Callable[..., Tensor | None]  # see `taps.kernels.Normalisation`
RELU = (0.0, math.inf)
RELU6 = (0.0, 6.0)


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
            named = {RELU: "ReLU", RELU6: "ReLU6"}.get((self.low, self.high), "clamp")
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


def as_function(module: fx.GraphModule, fused: Callable[[], Fused]) -> Callable[..., Any]:
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
