"""The model on oneDNN: every convolution with what follows it one call, weights laid out for it.

What a compiler makes of a network of convolutions, without a compiler: a model is traced, additions
and activations go along with the convolution before them, and weights are put into the layout that
oneDNN works in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from streamadapt.between.builder import Builder, ordinary_copy
from streamadapt.errors import ConfigurationError
from streamadapt.taps.folded import FoldedConv2d, FoldedLayer
from streamadapt.taps.tracing import OneThreadTracer

_Post = tuple[str, list[float], str]  # as oneDNN's operators call an activation
_NONE: _Post = ("none", [], "")
_RELU: _Post = ("relu", [], "")
_RELU6: _Post = ("hardtanh", [0.0, 6.0], "")
_CALLS: dict[Any, _Post] = {
    F.relu: _RELU,
    torch.relu: _RELU,
    torch.relu_: _RELU,
    F.relu6: _RELU6,
    F.silu: ("swish", [], ""),
    "relu": _RELU,
    "relu_": _RELU,
}
_MODULES: dict[type[nn.Module], _Post] = {
    nn.ReLU: _RELU,
    nn.ReLU6: _RELU6,
    nn.SiLU: ("swish", [], ""),
}
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_FRESH = (nn.Conv2d, FoldedConv2d, nn.MaxPool2d)


def onednn(example: Tensor, *, moved: float = 0.003) -> Builder:
    """Batches in between are answered by oneDNN's fused convolutions, in the library of PyTorch.

    Args:
        example: a batch as they come: fp32, on the CPU.
        moved: see `Builder`.

    Raises:
        ConfigurationError: this PyTorch has no oneDNN, or the example is no fp32 tensor on the CPU.
    """
    if not torch.backends.mkldnn.is_available():
        raise ConfigurationError("`onednn` needs a PyTorch that is built with oneDNN.")
    if example.device.type != "cpu" or example.dtype != torch.float32:
        raise ConfigurationError(
            f"`example` must be float32 on the CPU, is {example.dtype} on {example.device}."
        )
    example = ordinary_copy(example)

    def build(model: nn.Module) -> Any:
        graph = fx.GraphModule(model, _Tracer().trace(model))
        with torch.no_grad():
            shapes = _Shapes(graph)
            shapes.run(example)
            _fuse(graph, shapes)
        graph.delete_all_unused_submodules()
        graph.recompile()
        forward: Callable[[Tensor], Any] = graph.forward

        def run(frames: Tensor) -> Any:
            with torch.no_grad():
                return forward(frames)

        run(example)
        return run

    return Builder(build, name="onednn", example=example, moved=moved)


class _Tracer(OneThreadTracer):
    """Leaves folded layers as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FoldedLayer) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs a graph and remembers the shapes of tensors."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.of: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.of[n] = result.shape
        return result


class _Convolution(nn.Module):
    """A convolution, an addition and an activation.

    Args:
        layer: the convolution.
        shape: of its input.
        post: the activation.
        over: the sum is written over what is added.
    """

    def __init__(self, layer: nn.Conv2d, shape: torch.Size, post: _Post, *, over: bool) -> None:
        super().__init__()
        padding = layer.padding
        assert not isinstance(padding, str)
        self._settings = (list(padding), list(layer.stride), list(layer.dilation), layer.groups)
        reorder: Any = getattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")  # noqa: B009
        weight = layer.weight.detach()
        self._weight = reorder(weight.to_mkldnn(), *self._settings, list(shape))
        self._bias = None if layer.bias is None else layer.bias.detach().clone()
        self._post, self._over = post, over
        operators: Any = torch.ops.mkldnn
        self._plain = operators._convolution_pointwise
        self._binary = operators._convolution_pointwise_.binary if over else self._plain.binary

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Its result."""
        name, scalars, algorithm = self._post
        result: Tensor
        if other is None:
            result = self._plain(
                x, self._weight, self._bias, *self._settings, name, scalars, algorithm
            )
            return result
        unary = None if name == "none" else name
        first = (other, x) if self._over else (x, other)
        result = self._binary(
            *first, self._weight, self._bias, *self._settings, "add", 1.0, unary, scalars, algorithm
        )
        return result


def _fuse(graph: fx.GraphModule, shapes: _Shapes) -> None:
    """Put fused convolutions in the place of plain ones."""
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    fresh = {node for node in order if _is_fresh(graph, node)}
    for count, node in enumerate(list(order)):
        layer = _module(graph, node)
        if not isinstance(layer, nn.Conv2d) or not _usable(layer, node, shapes):
            continue
        x, last, other, over = node.args[0], node, None, False
        follows = _only_user(node)
        if follows is not None and _calls(follows, _ADDITIONS) and len(follows.args) == 2:
            one, two = follows.args
            added = two if one is node else one
            if isinstance(added, fx.Node) and added is not node and not follows.kwargs:
                # What comes later takes the other along; its own turn comes.
                if shapes.of.get(added) == shapes.of[node] and order[added] < order[node]:
                    other, last = added, follows
                    ends = all(
                        one is follows or (one in fresh and order[one] < order[node])
                        for one in added.users
                    )
                    over = added in fresh and ends and added is not x
                    follows = _only_user(last)
                else:
                    follows = None
            else:
                follows = None
        post = None if follows is None else _activation(graph, follows)
        if post is not None:
            assert follows is not None
            last = follows
        assert isinstance(x, fx.Node)
        fused = _Convolution(layer, shapes.of[x], post or _NONE, over=over)
        graph.add_submodule(f"onednn_{count}", fused)
        with graph.graph.inserting_before(node):
            args = (x,) if other is None else (x, other)
            new = graph.graph.call_module(f"onednn_{count}", args)
        order[new], shapes.of[new] = order[node], shapes.of[node]
        fresh.add(new)
        last.replace_all_uses_with(new)
        while last is not node:
            before = next(one for one in last.all_input_nodes if one is not other)
            graph.graph.erase_node(last)
            last = before
        graph.graph.erase_node(node)
    graph.graph.lint()


def _usable(layer: nn.Conv2d, node: fx.Node, shapes: _Shapes) -> bool:
    plain = type(layer) in (nn.Conv2d, FoldedConv2d) and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str) or layer.weight.dtype != torch.float32:
        return False
    x = node.args[0] if len(node.args) == 1 and not node.kwargs else None
    return isinstance(x, fx.Node) and len(shapes.of.get(x, ())) == 4 and node in shapes.of


def _is_fresh(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's result is memory of its own, which nothing else looks at."""
    pooled = node.op == "call_function" and node.target is F.max_pool2d
    return pooled or type(_module(graph, node)) in _FRESH


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _calls(node: fx.Node, targets: Any) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _activation(graph: fx.GraphModule, node: fx.Node) -> _Post | None:
    module = _module(graph, node)
    if module is not None:
        return _MODULES.get(type(module))
    if _calls(node, _CALLS) and len(node.args) == 1 and not set(node.kwargs) - {"inplace"}:
        return _CALLS[node.target]
    return None
