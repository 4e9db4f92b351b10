"""Convolutions with their weight laid out for oneDNN.

PyTorch's convolution on the CPU puts the weight into oneDNN's layout in every call, which counts
where frames are few. Here it is done once, and again when the weight was written to. Where the
result has to be the convolution's own, both run on random numbers the first time that an input of
a shape is seen, and only what gives the same, to the bit, is used for it from then on: a frame that
is black would tell nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamadapt.ops.compiled import Kernels
from streamadapt.taps.folded import FoldedConv2d

_Run = Callable[[Tensor], Tensor]
_Words = tuple[list[Tensor], Tensor]
_Settings = tuple[Any, ...]  # see `_SETTINGS`
_SHAPES = 32  # of inputs that are remembered for a layer; others run as they are
_WORDS = 8  # of each weight, looked at before every step
_SETTINGS = ("padding", "stride", "dilation", "groups")
_onednn_enabled: Callable[[], bool] = getattr(torch._C, "_get_mkldnn_enabled", lambda: True)


def ordinary() -> bool:
    """Whether operations do what they say: nothing rounds, records or maps them."""
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and _onednn_enabled()
        and torch._C._get_tracing_state() is None
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


class PackedConvolution:
    """Runs one convolution, where that can be done; else returns None.

    Args:
        layer: whose weight is packed anew whenever it was written to.
        exact: only where the result is the layer's own to the bit, strides included.

    Attributes:
        words: a few words of what is packed, spread over it, as views and as they were; None
            while nothing is packed.
    """

    def __init__(self, layer: nn.Conv2d, *, exact: bool = True) -> None:
        self._own, self._parameters = layer.__dict__, layer._parameters
        self._layer, self._exact = layer, exact
        self._held: tuple[Tensor | None, Tensor | None] = (None, None)
        self._versions: tuple[int, ...] = ()
        self._packed: dict[Callable[..., _Run], _Run | None] = {}
        self._chosen: dict[Any, _Run | None] = {}
        self._shape: torch.Size | None = None  # of the last input
        self._strides: tuple[int, ...] = ()
        self._run: _Run | None = None
        self.words: _Words | None = None

    @classmethod
    def of(cls, layer: nn.Module, *, exact: bool = True) -> PackedConvolution | None:
        """For a layer, if it is one that this can be done for."""
        if not isinstance(layer, nn.Conv2d) or type(layer) not in (nn.Conv2d, FoldedConv2d):
            return None
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return cls(layer, exact=exact) if plain and torch.backends.mkldnn.is_available() else None

    def settings(self) -> dict[str, Any]:
        """Attributes of the layer that must not change without `forget` being called."""
        return {key: self._own[key] for key in _SETTINGS}

    def __call__(self, x: Tensor) -> Tensor | None:
        """The layer's output, while `ordinary()`; None, and nothing done, where that cannot be."""
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        if weight is None or type(x) is not Tensor or not x.is_cpu:
            return None
        if weight.is_inference() or (bias is not None and bias.is_inference()):
            return None  # writes to it are not counted
        versions = (
            (weight._version, weight.data_ptr())
            if bias is None
            else (weight._version, weight.data_ptr(), bias._version, bias.data_ptr())
        )
        known = self._held
        if known[0] is not weight or known[1] is not bias or self._versions != versions:
            self.forget()
            self._held, self._versions = (weight, bias), versions
        if x.shape != self._shape or x.stride() != self._strides or x.dtype is not torch.float32:
            if x.layout is not torch.strided or x.dtype is not torch.float32 or x.dim() != 4:
                return None
            key = x.shape, x.stride()
            if key not in self._chosen:
                return self._choose(key, x)
            self._shape, self._strides = key
            self._run = self._chosen[key]
        return None if self._run is None else self._run(x)

    def forget(self) -> None:
        """Pack anew, and compare anew, when called again."""
        self._held, self.words, self._shape = (None, None), None, None
        self._packed.clear()
        self._chosen.clear()

    def _choose(self, key: Any, x: Tensor) -> Tensor | None:
        """Find what runs inputs like `x` from now on; the output for this one."""
        if len(self._chosen) >= _SHAPES:
            return None
        self._chosen[key] = None
        tensors = [one for one in self._held if one is not None]
        if not all(map(_plain, tensors)) or not x.numel():
            return None
        if not self._exact:
            self._chosen[key] = run = self._pack(_pointwise, x)
            return None if run is None else run(x)
        generator = torch.Generator().manual_seed(0)
        probe = torch.empty_like(x).normal_(generator=generator)
        own = self._layer(probe)
        last = x.is_contiguous(memory_format=torch.channels_last)
        for way in (_pointwise, _prepacked) if last else (_prepacked,):
            run = self._pack(way, x)
            if run is not None and _same(run(probe), own):
                self._chosen[key] = run
                return run(x)
            if run is not None and run not in self._chosen.values():
                del self._packed[way]  # memory that is of no use so far; others may have some
        return None

    def _pack(self, way: Callable[..., _Run], x: Tensor) -> _Run | None:
        if way in self._packed:
            return self._packed[way]
        weight, bias = (None if one is None else one.detach() for one in self._held)
        try:
            with torch.inference_mode(False):
                run = way(weight, bias, tuple(self.settings().values()), list(x.shape))
                self.words = _words([one for one in (weight, bias) if one is not None])
        except (RuntimeError, AttributeError):  # this PyTorch has no such thing, or no room
            run = None
        self._packed[way] = run
        return run


class PackedConvolutions:
    """Those of a model, and whether their weights are still the ones that were packed.

    Tensors that are replaced, or written to by operations, are noticed by each convolution itself.
    Writing to `weight.data` leaves no trace but the values: a few of every weight are compared.

    Args:
        kernels: compare them in one call; None: PyTorch does.
    """

    def __init__(self, kernels: Kernels | None) -> None:
        self._kernels = kernels
        self._layers: dict[nn.Module, PackedConvolution] = {}
        self._looked: list[_Words | None] = []
        self._views: list[Tensor] = []
        self._words = torch.empty(0, dtype=torch.int32)
        self._addresses = np.empty(0, dtype=np.uintp)
        self._threads = 0

    def add(self, layer: nn.Module) -> PackedConvolution | None:
        """One more, if it is one that this can be done for."""
        found = self._layers.get(layer) or PackedConvolution.of(layer)
        if found is not None:
            self._layers[layer] = found
        return found

    def look(self) -> None:
        """Before a step: what was written to behind PyTorch's back is packed anew."""
        if not ordinary():
            return  # nothing runs on packed weights then
        words = [one.words for one in self._layers.values()]
        if len(words) != len(self._looked) or not all(map(is_, words, self._looked)):
            self._looked, there = words, [one for one in words if one is not None]
            self._views = [view for views, _ in there for view in views]
            self._words = torch.cat([known for _, known in there]) if there else self._words[:0]
            addresses = [view.data_ptr() + 4 * k * step for view, k, step in _places(self._views)]
            self._addresses = np.array(addresses, dtype=np.uintp)
        threads = torch.get_num_threads()
        if threads == self._threads and self._same():
            return
        self._threads = threads  # with others, oneDNN may choose another way
        for one in self._layers.values():
            one.forget()

    def _same(self) -> bool:
        if self._kernels is None:
            return not self._views or torch.equal(torch.cat(self._views), self._words)
        addresses = self._addresses
        known = self._words.data_ptr()
        return self._kernels.same_words(addresses.ctypes.data, known, len(addresses))


def _pointwise(weight: Tensor, bias: Tensor | None, given: _Settings, shape: list[int]) -> _Run:
    """Gives channels-last results, whatever it is given."""
    padding, stride, dilation, groups = given
    settings = [list(padding), list(stride), list(dilation), groups]
    reorder: Any = getattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")  # noqa: B009
    packed = reorder(weight.to_mkldnn(), *settings, shape)
    operators: Any = torch.ops.mkldnn
    run = operators._convolution_pointwise.default
    rest = (packed, bias, *settings, "none", [], "")
    return lambda x: run(x, *rest)


def _prepacked(weight: Tensor, bias: Tensor | None, given: _Settings, shape: list[int]) -> _Run:
    """Gives results in its input's layout."""
    padding, stride, dilation, groups = given
    operators: Any = torch.ops.mkldnn_prepacked
    packed = operators.conv2d_prepack(
        weight, bias, stride, padding, dilation, groups, shape, "none"
    )
    run = operators.conv2d_run
    run = getattr(run, "_op", run)  # without looking in each call for what may stand in for it
    return lambda x: run(x, packed)


def _words(tensors: Sequence[Tensor]) -> _Words:
    views = []
    for one in tensors:
        count = min(one.numel(), _WORDS)
        views.append(one.view(torch.int32).as_strided((count,), (one.numel() // count,)))
    return views, torch.cat(views)


def _places(views: Sequence[Tensor]) -> Iterator[tuple[Tensor, int, int]]:
    for view in views:
        for k in range(len(view)):
            yield view, k, view.stride(0)


def _plain(tensor: Tensor) -> bool:
    """Whether a weight is fp32 numbers in memory without gaps, and nothing more."""
    kinds = (Tensor, nn.Parameter)
    if type(tensor) not in kinds or tensor.layout is not torch.strided or not tensor.is_cpu:
        return False
    dense = tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    return tensor.dtype is torch.float32 and dense and tensor.numel() > 0


def _same(one: Tensor, other: Tensor) -> bool:
    return one.stride() == other.stride() and torch.equal(one, other)
