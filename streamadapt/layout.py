"""Where every layer's channels lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

ALIGNMENT_CHANNELS = 32  # 128 bytes of fp32: every slice starts on a cache line and a DRAM sector


@dataclass(frozen=True)
class LayerSlice:
    """Where one layer's channels lie in the bank."""

    name: str
    start: int
    channels: int
    eps: float

    @property
    def stop(self) -> int:
        """One past the layer's last channel (padding not included)."""
        return self.start + self.channels

    @property
    def span(self) -> slice:
        """The layer's channels as a slice of the channel dimension."""
        return slice(self.start, self.stop)


def layers_up_to(depth: float, layers: int) -> int:
    """How many of so many layers lie within a part of the model, from 0 (one) to 1 (all)."""
    return math.floor(depth * (layers - 1) + 1e-9) + 1


class BankLayout:
    """The order, place and eps of every layer, shared by everything that indexes the bank.

    Args:
        layers: `(name, channels, eps)` in execution or registration order.
    """

    def __init__(self, layers: Sequence[tuple[str, int, float]]) -> None:
        placed, start = [], 0
        for name, channels, eps in layers:
            placed.append(LayerSlice(name, start, channels, eps))
            start += -(-channels // ALIGNMENT_CHANNELS) * ALIGNMENT_CHANNELS
        self.layers = tuple(placed)
        self.padded_channels = start
        self.channels = sum(layer.channels for layer in placed)
        starts = [layer.start for layer in placed]
        widths = [b - a for a, b in pairwise([*starts, start])]
        with torch.inference_mode(False):
            self._starts = torch.tensor(starts, dtype=torch.long)
            self._layer_of = torch.repeat_interleave(
                torch.arange(len(placed)), torch.tensor(widths, dtype=torch.long)
            )
            self._eps = torch.cat(
                [
                    torch.full((width,), layer.eps, dtype=torch.float64)
                    for layer, width in zip(placed, widths, strict=True)
                ]
            )
            real = torch.zeros(start, dtype=torch.float64)
            for layer in placed:
                real[layer.span] = 1.0 / layer.channels
            self._share = real
            last = max(len(placed) - 1, 1)
            depth = torch.arange(len(placed), dtype=torch.float64) / last
            self._depth = depth.index_select(0, self._layer_of).unsqueeze(0)
        self._leading: dict[float, tuple[slice, Tensor]] = {}

    def to(self, device: torch.device) -> None:
        """Move the index tensors; a no-op when they are already there."""
        self._starts = self._starts.to(device)
        self._layer_of = self._layer_of.to(device)
        self._eps = self._eps.to(device)
        self._share = self._share.to(device)
        self._depth = self._depth.to(device)
        self._leading.clear()

    @property
    def eps(self) -> Tensor:
        """`[padded channels]`, float64."""
        return self._eps

    @property
    def places(self) -> Tensor:
        """Where the layers' channels lie among the padded ones, `[channels]`, on the CPU."""
        return torch.cat([torch.arange(one.start, one.stop) for one in self.layers])

    @property
    def depth(self) -> Tensor:
        """`[1, padded channels]`, float64: 0 in the first layer, 1 in the last."""
        return self._depth

    def per_channel(self, per_layer: Tensor) -> Tensor:
        """Spread `[..., layers]` to `[..., padded channels]`."""
        return per_layer.index_select(-1, self._layer_of)

    def per_layer(self, per_channel: Tensor) -> Tensor:
        """Pick one value a layer from `[..., padded channels]` that is constant in each layer."""
        return per_channel.index_select(-1, self._starts)

    def mean_per_layer(self, per_channel: Tensor) -> Tensor:
        """Average `[..., padded channels]` over each layer's channels; padding has weight zero."""
        shape = (*per_channel.shape[:-1], len(self.layers))
        out = torch.zeros(shape, dtype=per_channel.dtype, device=per_channel.device)
        weighted = per_channel * self._share.to(per_channel.dtype)
        return out.index_add_(-1, self._layer_of, weighted)

    def mean_over_layer(self, per_channel: Tensor) -> Tensor:
        """Put the mean over its layer in the place of each of `[..., padded channels]`."""
        return self.per_channel(self.mean_per_layer(per_channel))

    def leading(self, depth: float) -> slice:
        """Channels of the layers up to a depth, from 0 (the first layer alone) to 1 (all)."""
        return self._lead(depth)[0]

    def mean_over_leading(self, per_channel: Tensor, depth: float) -> Tensor:
        """The mean over these layers of their means, `[..., 1]`, from `[..., those channels]`."""
        return (per_channel * self._lead(depth)[1]).sum(dim=-1, keepdim=True)

    def _lead(self, depth: float) -> tuple[slice, Tensor]:
        """Their span, and what each channel counts in the mean; padding counts nothing."""
        if depth not in self._leading:
            count = layers_up_to(depth, len(self.layers))
            span = slice(0, self.layers[count].start if count < len(self.layers) else None)
            with torch.inference_mode(False):
                self._leading[depth] = span, self._share[span] / count
        return self._leading[depth]

    def mean_over_model(self, per_channel: Tensor) -> Tensor:
        """The mean over all layers of their means over channels, `[..., 1]`."""
        share = self._share.to(per_channel.dtype) / len(self.layers)
        return (per_channel * share).sum(dim=-1, keepdim=True)
