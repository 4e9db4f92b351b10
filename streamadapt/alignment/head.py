"""The head of a wrapped model: shows its input to the armed step, and lets it be moved."""

from __future__ import annotations

import itertools
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.alignment.features import find_head
from streamadapt.alignment.offline import bake
from streamadapt.alignment.rows import AlignmentRows
from streamadapt.alignment.source import Coral
from streamadapt.alignment.step import HeadStep, move_features
from streamadapt.errors import ConfigurationError, UnsupportedModelError

_keys = itertools.count(1)
_heads: weakref.WeakValueDictionary[int, AlignedHead] = weakref.WeakValueDictionary()

# Opaque to the compiler, like the taps of the BatchNorm layers, and with the same token.
_library = torch.library.Library("streamadapt", "FRAGMENT")
_library.define("align_(Tensor x, Tensor(a!) token, int head) -> Tensor")
_library.define(
    "alignment_(Tensor x, Tensor(a!) token, int head, bool one) -> (Tensor, Tensor, Tensor)"
)


class AlignedHead:
    """Joins the classifier head of one model with the alignment state of its streams.

    Args:
        source: the source side, calibrated on this model.
        model: the wrapped model.
        rows: number of streams.
        frames_per_row: items that the head sees of each batch entry.

    Raises:
        ConfigurationError: `source` is no `Coral`, or was calibrated on another model.
        UnsupportedModelError: the head cannot be aligned.
    """

    is_streamadapt_tap = True

    def __init__(self, source: Coral, model: nn.Module, *, rows: int, frames_per_row: int) -> None:
        if not isinstance(source, Coral):
            raise ConfigurationError(
                f"`alignment` must be a Coral, got {type(source).__name__}. Make one with "
                "alignment.Coral.calibrate(model, source_batches)."
            )
        self.module = find_head(model, source.layer)
        if self.module.in_features != source.features:
            raise ConfigurationError(
                f"The head {source.layer!r} has {self.module.in_features} inputs, `alignment` was "
                f"calibrated on {source.features}. Calibrate it on this model."
            )
        self.key = next(_keys)
        self.source = source
        self.aligning = False
        self.step: HeadStep | None = None
        self._frames_per_row = frames_per_row
        self._single = rows == 1
        device = self.module.weight.device
        self.rows = AlignmentRows(source, rows=rows, device=device)
        with torch.inference_mode(False):
            self.token = torch.zeros(1, device=device)
        self.replaced: Callable[..., Tensor] | None = self.module.__dict__.get("forward")
        self.original: Callable[..., Tensor] = self.module.forward
        _heads[self.key] = self

    def __call__(self, input: Tensor) -> Tensor:
        """The head's own output, on features that are aligned while a step is armed."""
        x = input  # nn.Linear's name for it, for models that give it by name
        if torch.compiler.is_compiling():
            if self.aligning and x.dim() != 2:
                torch.ops.streamadapt.align_(x.detach(), self.token, self.key)  # says what is wrong
            elif self.aligning and torch.is_grad_enabled():
                mean, shift, excess = torch.ops.streamadapt.alignment_(
                    x.detach(), self.token, self.key, self._single
                )
                grouped = x.unsqueeze(0 if self._single else 1)
                x = move_features(grouped, mean, shift, excess).view(x.shape)
            elif self.aligning:
                x = torch.ops.streamadapt.align_(x, self.token, self.key)
        else:
            step = self.step
            if step is not None and step.thread == threading.get_ident():
                x = step.visit(x)
        return self.original(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Tensor]:
        """A copied model runs its own head and knows nothing of the alignment."""
        twin = memo.get(id(self.module), self.module)
        return types.MethodType(type(self.module).forward, twin)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[nn.Module, str]]:
        """As for copies."""
        return getattr, (self.module, "forward")

    @classmethod
    def of(
        cls, source: Coral | None, model: nn.Module, *, rows: int, frames_per_row: int
    ) -> AlignedHead | None:
        """The head that `source` names; None without one."""
        if source is None:
            return None
        return cls(source, model, rows=rows, frames_per_row=frames_per_row)

    def require_device(self, device: torch.device) -> None:
        """Refuse a head that is not where the BatchNorm layers are (`UnsupportedModelError`)."""
        if self.module.weight.device != device:
            raise UnsupportedModelError(
                f"The head {self.source.layer!r} is on {self.module.weight.device}, the BatchNorm "
                f"layers are on {device}. Put the model on one device, or leave `alignment=` out."
            )

    def install(self) -> None:
        """Put the head's `forward` in place."""
        self.module.__dict__["forward"] = self

    def remove(self) -> None:
        """Leave the head as it was before `install`."""
        if self.module.__dict__.get("forward") is self:
            del self.module.__dict__["forward"]
            if self.replaced is not None:
                self.module.__dict__["forward"] = self.replaced

    def arm(self, rows: Sequence[int], entries: Sequence[int] | None, *, observe: bool) -> HeadStep:
        """Align the head's input until `disarm`, on this thread.

        Args:
            rows: rows of the batch.
            entries: index into `rows` of each batch entry; None when there is one row.
            observe: keep the features for the update.
        """
        step = HeadStep(
            self.rows, rows, entries, frames_per_row=self._frames_per_row, observe=observe
        )
        self.step, self.aligning = step, True
        return step

    def disarm(self) -> None:
        """Run the head untouched from now on."""
        self.step, self.aligning = None, False

    def bake(self, twin: nn.Module, row: int) -> None:
        """Make a row's map part of the head of a copied model."""
        twin.__dict__.pop("forward", None)
        assert isinstance(twin, nn.Linear)
        bake(twin, self.source, mean=self.rows.mean[row], excess=self.rows.excess[row])

    def moved(self, device: torch.device) -> None:
        """Follow the model to another device; the rows are moved by the bank."""
        with torch.inference_mode(False):
            self.token = self.token.to(device)


def _armed(head: int) -> HeadStep | None:
    found = _heads.get(head)
    step = None if found is None else found.step
    return step if step is not None and step.thread == threading.get_ident() else None


def _align(x: Tensor, token: Tensor, head: int) -> Tensor:
    step = _armed(head)
    moved = x if step is None else step.visit(x)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(moved)


def _alignment(x: Tensor, token: Tensor, head: int, one: bool) -> tuple[Tensor, Tensor, Tensor]:
    step = _armed(head)
    maps = _alignment_shapes(x, token, head, one)
    if step is None:
        for part in maps:
            part.zero_()
    else:
        for part, value in zip(maps, step.maps(x, one=one), strict=True):
            part.copy_(value)
    return maps


def _align_shape(x: Tensor, token: Tensor, head: int) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _alignment_shapes(
    x: Tensor, token: Tensor, head: int, one: bool
) -> tuple[Tensor, Tensor, Tensor]:
    groups, size = (1 if one else x.shape[0]), x.shape[1]
    return (
        x.new_empty((groups, size), dtype=torch.float32),
        x.new_empty((groups, size), dtype=torch.float32),
        x.new_empty((groups, size, size), dtype=torch.float32),
    )


_library.impl("align_", _align, "CompositeExplicitAutograd")
_library.impl("alignment_", _alignment, "CompositeExplicitAutograd")
torch.library.register_fake("streamadapt::align_", _align_shape, lib=_library)
torch.library.register_fake("streamadapt::alignment_", _alignment_shapes, lib=_library)
