"""The model's statistics buffers: as views of a bank row, or as the model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from streamadapt.bank import StatisticsBank
from streamadapt.taps.inventory import AdaptableLayer
from streamadapt.taps.refolding import Refolding

Pairs = list[tuple[Tensor, Tensor]]
_KEYS = ("running_mean", "running_var")


class BufferBinding:
    """Keeps track of whose memory every layer's mean and variance are.

    Bound, a layer with fp32 buffers reads the bank's row itself; buffers of another dtype stay
    the model's own and are written after each commit. Unbound, the model holds the source.

    The statistics of folded layers are in their weights, which are written now and then.

    Args:
        layers: the adaptable layers, in the bank's order.
        folded: those of them that are folded; None: there are none.
    """

    def __init__(self, layers: Sequence[AdaptableLayer], folded: Refolding | None = None) -> None:
        self._layers, self.folded = layers, folded
        self.originals: Pairs = [layer.buffers for layer in layers]
        with torch.inference_mode(False), torch.no_grad():
            self._pristine = _cloned(self.originals)
        self._expected: Pairs = list(self.originals)
        self._compared: tuple[list[Any], list[str], list[Tensor]] | None = None
        self._views: Pairs | None = None
        self._written: list[int] = []
        self.loaded = False
        self._handles: list[RemovableHandle] = []
        for layer in layers:
            hook = _LayerHook(self, layer.module)
            self._handles.append(layer.module.register_state_dict_post_hook(hook.compact))
            self._handles.append(layer.module.register_load_state_dict_post_hook(hook.loaded))

    @property
    def bound(self) -> bool:
        """Whether the model reads a bank row."""
        return self._views is not None

    @property
    def manner(self) -> str:
        """Where the model's statistics are, in words."""
        if not self.bound:
            return "the source's; inputs are moved frame by frame"
        if self.folded is not None:
            return f"folded into weights, at the latest every {self.folded.every} commits"
        if self._written:
            return "written to the model's buffers after each commit"
        return "views of the bank"

    def current(self) -> Pairs:
        """What the model holds now."""
        return [layer.buffers for layer in self._layers]

    def intact(self) -> bool:
        """Whether every buffer is still the tensor that was put there."""
        if self._compared is None:  # of all layers, to be compared at once: before each step
            buffers = [layer.module._buffers for layer in self._layers]
            self._compared = (
                [one for one in buffers for _ in _KEYS],
                list(_KEYS) * len(buffers),
                [tensor for pair in self._expected for tensor in pair],
            )
        held, keys, expected = self._compared
        return all(map(is_, map(dict.get, held, keys), expected))

    def only_converted(self) -> bool:
        """Whether the model holds what was put there, if in another place or dtype."""
        pairs = zip(self.current(), self._expected, strict=True)
        return all(
            torch.equal(held, expected.to(device=held.device, dtype=held.dtype))
            for pair in pairs
            for held, expected in zip(*pair, strict=True)
        )

    def bind(self, bank: StatisticsBank, row: int) -> None:
        """Let the model read `row`."""
        self._views = bank.views(row)
        self._written = []
        for index, (layer, view) in enumerate(zip(self._layers, self._views, strict=True)):
            held = layer.buffers
            if layer.kind == "folded":
                self._put(index, held)
            elif all(buffer.dtype == torch.float32 for buffer in held):
                self._put(index, view)
            else:
                self._written.append(index)
                self._put(index, held)
        self._row = bank.data[row, :2]
        if self.folded is not None:
            self.folded.look()
        self.write_back()

    def unbind(self) -> None:
        """Give the model its source statistics: the original tensor objects where they still fit.

        After `.to(device)` or `.half()` the model's place is elsewhere, and it gets its source
        statistics there.
        """
        for index, layer in enumerate(self._layers):
            pair = []
            for original, pristine, held in zip(
                self.originals[index], self._pristine[index], layer.buffers, strict=True
            ):
                fits = original.dtype == held.dtype and original.device == held.device
                if fits:
                    # An untouched tensor is not written: that would fail a pending backward().
                    if not torch.equal(original, pristine):
                        with _writable(original):
                            original.copy_(pristine)
                    pair.append(original)
                else:
                    pair.append(pristine.to(device=held.device, dtype=held.dtype))
            self._put(index, (pair[0], pair[1]))
        self._views = None
        self._written = []
        if self.folded is not None:
            self.folded.look()
            self.folded.restore()

    def committed(self, *, at_once: bool) -> None:
        """The bound row was committed; folded layers take it at once, or when it is their turn."""
        self._copy()
        if self._views is not None and self.folded is not None:
            self.folded.committed(self._row, at_once=at_once)

    def write_back(self) -> None:
        """Copy the bound row into the buffers that cannot be views of it, and into weights."""
        self._copy()
        if self._views is not None and self.folded is not None:
            self.folded.write(self._row)

    def _copy(self) -> None:
        if self._views is None or not self._written:
            return
        targets: list[Tensor] = []
        values: list[Tensor] = []
        for index in self._written:
            targets += self._expected[index]
            values += self._views[index]
        with torch.inference_mode(False), torch.no_grad():
            torch._foreach_copy_(targets, values)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Let the model read copies, which autograd may keep while the bank moves on."""
        kept = list(self._expected)
        folded = [] if self.folded is None else self.folded.weights()
        with torch.inference_mode(False), torch.no_grad():
            copies = _cloned(kept)
        for index, pair in enumerate(copies):
            self._put(index, pair)
        for layer, weight, bias in folded:
            # As tensors of the graph, so that a gradient finds its way to the parameters.
            _lend(layer, weight.clone(), bias.clone())
        try:
            yield
        finally:
            for index, pair in enumerate(kept):
                self._put(index, pair)
            for layer, weight, bias in folded:
                _lend(layer, weight, bias)

    def adopt_source(self, values: Pairs) -> None:
        """Take `values` as what the model had from the start."""
        with torch.inference_mode(False), torch.no_grad():
            self._pristine = _cloned(values)
        if self.folded is not None:
            self.folded.adopt()

    def adopt_held(self) -> None:
        """Accept the buffers that the model holds now as the expected ones."""
        self._expected, self._compared = self.current(), None

    def release(self) -> None:
        """Unbind and take the state-dict hooks off."""
        self.unbind()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @staticmethod
    def strip(copied: nn.Module) -> None:
        """Take the inert hooks off a copied layer."""
        for hooks in (copied._state_dict_hooks, copied._load_state_dict_post_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(hook, _InertWhenCopied)]:
                del hooks[key]

    def _put(self, index: int, pair: tuple[Tensor, Tensor]) -> None:
        buffers = self._layers[index].module._buffers
        for key, tensor in zip(_KEYS, pair, strict=True):
            buffers[key] = tensor
        self._expected[index], self._compared = pair, None


class _LayerHook:
    """State-dict hooks of one layer; copies and pickles of the layer get hooks that do nothing."""

    def __init__(self, binding: BufferBinding, module: nn.Module) -> None:
        self.compact = _InertWhenCopied(self._compact)
        self.loaded = _InertWhenCopied(self._loaded)
        self._binding = binding
        self._module = module

    def _compact(
        self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any
    ) -> None:
        if module is not self._module:
            return
        for key in _KEYS:
            held = state.get(prefix + key)
            if isinstance(held, Tensor):
                state[prefix + key] = held.clone()

    def _loaded(self, module: nn.Module, incompatible: Any) -> None:
        if module is self._module:
            self._binding.loaded = True


class _InertWhenCopied:
    """A hook whose copies and pickles do nothing."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _InertWhenCopied:
        return _InertWhenCopied(_nothing)

    def __reduce__(self) -> tuple[type[_InertWhenCopied], tuple[Callable[..., None]]]:
        return _InertWhenCopied, (_nothing,)


def _nothing(*args: Any) -> None:
    """Does nothing."""


def _lend(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Put tensors where a layer's parameters are."""
    held: Any = layer._parameters
    held["weight"], held["bias"] = weight, bias


def _cloned(pairs: Pairs) -> Pairs:
    return [(mean.detach().clone(), var.detach().clone()) for mean, var in pairs]


def _writable(tensor: Tensor) -> Any:
    """The mode in which `tensor` may be written: its own, inference tensors included."""
    return torch.inference_mode() if tensor.is_inference() else torch.no_grad()
