"""Modules whose `forward` runs with chains done in one pass, while a step asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from streamadapt.ops.compiled import Kernels
from streamadapt.taps.chains import Traced, trace_chains
from streamadapt.taps.contents import Contents
from streamadapt.taps.hooks import ForwardTap, ModelTap
from streamadapt.taps.inventory import AdaptableLayer
from streamadapt.taps.packed import PackedConvolutions, ordinary
from streamadapt.taps.program import Fused


class OwnerTap(ForwardTap):
    """Stands in for the `forward` of a module that calls BatchNorms.

    The first time, its own `forward` runs, and what was traced after it on the same input: only
    where both give the same, to the bit, it is used from then on.

    Attributes:
        usable: what was traced is still there, as far as that was looked at before the step.
        proven: what was traced does the same; None: not known yet.
    """

    def __init__(
        self,
        tap: ModelTap,
        traced: Traced,
        paused: Callable[[], AbstractContextManager[None]],
        *,
        alone: bool,
    ) -> None:
        super().__init__(traced.owner)
        self._alone = alone
        self.tap, self.traced, self._paused = tap, traced, paused
        self.proven: bool | None = None
        self.usable = True
        self.original: Callable[..., Any] = traced.owner.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output."""
        step = self.tap.step
        if (
            torch.compiler.is_compiling()
            or step is None
            or (step.fused is None and not self._alone)
            or step.thread != get_ident()
            or self.proven is False
            or not self.usable
            or kwargs
            or len(args) != self.traced.arguments
            or not all(type(one) is Tensor for one in args)
            or torch.is_grad_enabled()
            or not self.traced.unchanged()
        ):
            return self.original(*args, **kwargs)
        if self.proven is None:
            # Whoever listens inside must not hear the same frames several times.
            return self.original(*args) if _has_hooks(self.module) else self._prove(*args)
        return self.traced.run(*args) if ordinary() else self.traced.fused(*args)

    def _prove(self, *args: Tensor) -> Any:
        """The module's own output; and see whether what was traced does the same."""
        kept = [[one.clone() for one in args] for _ in range(2)]
        output = self.original(*args)
        with self._paused(), torch.random.fork_rng(devices=[]):
            try:
                own, plain = self.original(*kept[0]), self.traced.plain(*kept[1])
                self.proven = _same(own, plain)
            except Exception:  # of the trace; the module's own would have raised above
                self.proven = False
        return output


class OwnerTaps:
    """All such modules of one model.

    Args:
        model: that they are part of.
        layers: the adaptable ones.
        tap: of the layers.
        kernels: compiled ones.
        packs: convolutions may run on packed weights, also where nothing else is to be had.
        paused: a context in which the model runs as if no step were armed.

    Attributes:
        taps: in place while installed.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[AdaptableLayer],
        tap: ModelTap,
        *,
        kernels: Kernels | None,
        packs: bool,
        paused: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._tap, self._usable = tap, True
        self._packed = PackedConvolutions(kernels)
        found, self._alone = trace_chains(model, layers, fused=self._fused, packed=self._packed.add)
        self.taps = [
            OwnerTap(tap, traced, paused, alone=kernels is None and packs) for traced in found
        ]
        self._contents = Contents()
        for traced in found:
            self._contents.add(traced.contents)

    def install(self) -> None:
        """Put them in place."""
        for one in self.taps:
            one.module.__dict__["forward"] = one
            one.traced.installed()

    def remove(self) -> None:
        """Leave every module as it was before `install`."""
        for one in self.taps:
            if one.module.__dict__.get("forward") is one:
                del one.module.__dict__["forward"]

    def strip(self, memo: dict[int, Any]) -> None:
        """Take what is left of them off the copies of their modules."""
        for one in self.taps:
            memo[id(one.module)].__dict__.pop("forward", None)

    def look(self) -> None:
        """Before a step: see what became of modules, hooks and weights since the last one."""
        self._packed.look()
        same = self._contents.same()
        if same and self._usable:
            return
        for one in self.taps:
            one.usable = one.traced.contents.same()
        self._usable = same

    def manners(self) -> dict[int, str]:
        """What is done in one pass, by the index of the layer, or why nothing is taken along."""
        found = {index: f"BatchNorm; {reason}" for index, reason in self._alone.items()}
        for one in self.taps:
            for chain in one.traced.chains:
                found[chain.layer] = chain.manner
                if one.proven is False:
                    name = one.traced.name or "the model"
                    found[chain.layer] = f"BatchNorm; what was traced of {name} differs from it"
        return found

    def _fused(self) -> Fused:
        """What normalises in the step that something traced is run for."""
        step = self._tap.step
        return _nothing if step is None or step.fused is None else step.fused


def _nothing(*_: Any) -> None:
    """Normalises nothing."""


def _has_hooks(owner: nn.Module) -> bool:
    return any(one._forward_hooks or one._forward_pre_hooks for one in nn.Module.modules(owner))


def _same(one: Any, other: Any) -> bool:
    """Whether two outputs are equal to the bit, NaNs included."""
    leaves, structure = pytree.tree_flatten(one)
    others, again = pytree.tree_flatten(other)
    if structure != again:
        return False
    for a, b in zip(leaves, others, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            alike = a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
            if not alike or not torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True):
                return False
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
            return False
    return True
