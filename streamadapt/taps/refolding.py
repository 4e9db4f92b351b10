"""Folded layers at work: their BatchNorms' inputs from their outputs, and statistics into weights.

A folded layer shows `z = gamma (x - mean) / sqrt(var + eps) + beta` and no longer `x`. With the
statistics that it is folded with, the moments of `x` follow from those of `z`:
`mean_x = mean + sqrt(var + eps) / gamma (mean_z - beta)`,
`var_x = (var + eps) / gamma^2 var_z`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamadapt.bank import StatisticsBank
from streamadapt.ops.collect import StagedMoments
from streamadapt.taps.folded import FoldedLayer, writable
from streamadapt.taps.inventory import AdaptableLayer

# A channel is measured only where gamma is so many times what rounding does to its output. In half
# precision the output is rounded once, and an eighth of a deviation adds 0.13 % to a variance; in
# fp32 the sum that it is the result of is rounded at every step.
_ROUNDINGS = {torch.float16: 8.0, torch.bfloat16: 8.0}
_ROUNDINGS_OF_SUMS = 64.0
_LEAST_GAMMA = 1e-12  # below, the square is lost in what keeps kernels from dividing by zero


class Refolding:
    """The folded layers of one model.

    Args:
        layers: all adaptable ones, in the bank's order.
        bank: of their statistics.
        every: commits from one refolding to the next.

    Attributes:
        indices: of the folded layers.
        every: as given.
        held: statistics that layers are folded with, `[2, padded channels]` fp32; of channels of
            other layers, anything.
        channels: which channels are folded layers', `[padded channels]` bool.
        withheld: which of them are not measured, and stay at the source.
    """

    held: Tensor
    channels: Tensor
    withheld: Tensor

    def __init__(
        self, layers: Sequence[AdaptableLayer], bank: StatisticsBank, *, every: int
    ) -> None:
        self._bank, self.every = bank, every
        self._layers: dict[int, FoldedLayer] = {}
        for index, layer in enumerate(layers):
            if layer.kind == "folded":
                assert isinstance(layer.module, FoldedLayer)
                self._layers[index] = layer.module
        self.indices = frozenset(self._layers)
        self._spans = [layer.span for layer in bank.layout.layers]
        self._pristine: dict[int, tuple[Tensor, Tensor] | None] = {}
        self._commits = 0
        self.adopt()

    def adopt(self) -> None:
        """Take what the layers hold now as what they had from the start."""
        with torch.inference_mode(False), torch.no_grad():
            self.look()
            self.held = self._bank.source.clone()
            self._derive()
            for index, layer in self._layers.items():
                kept = layer.weight.detach().clone(), layer.bias.detach().clone()
                layer.refold()
                # Where folding gives the same again, there is no need for another copy.
                same = torch.equal(kept[0], layer.weight) and torch.equal(kept[1], layer.bias)
                self._pristine[index] = None if same else kept
                if not same:
                    with writable(layer.weight):
                        layer.weight.copy_(kept[0])
                        layer.bias.copy_(kept[1])

    def look(self) -> None:
        """Follow the layers to another device or dtype."""
        device, width = self._bank.device, self._bank.layout.padded_channels
        with torch.inference_mode(False), torch.no_grad():
            self._gamma = torch.ones(width, dtype=torch.float64, device=device)
            self._beta = torch.zeros_like(self._gamma)
            self.channels = torch.zeros(width, dtype=torch.bool, device=device)
            self.withheld = torch.zeros_like(self.channels)
            for index, layer in self._layers.items():
                span, dtype = self._spans[index], layer.weight.dtype
                self._gamma[span], self._beta[span] = layer.gamma, layer.beta
                self.channels[span] = True
                info, times = torch.finfo(dtype), _ROUNDINGS.get(dtype, _ROUNDINGS_OF_SUMS)
                rounding = (layer.beta.double().abs() * info.eps).clamp(min=info.smallest_normal)
                least = (times * rounding).clamp(min=_LEAST_GAMMA)
                self.withheld[span] = layer.gamma.double().abs() < least
            self._withholds = {
                index: bool(self.withheld[self._spans[index]].any()) for index in self._layers
            }
            if hasattr(self, "held"):
                self.held = self.held.to(device)
                self._derive()

    def _derive(self) -> None:
        """What turns moments and maps over; for all layers at once."""
        mean, var = self.held.double()
        source, gamma, beta = self._bank.source.double(), self._gamma, self._beta
        deviation = (var + self._bank.layout.eps).sqrt()
        self._factor = torch.where(self.withheld, 0.0, deviation / gamma)
        self._offset = torch.where(self.withheld, source[0], mean - beta * self._factor)
        self._inverse = (gamma.abs() / deviation).float()
        self._source_inverse = source[1].rsqrt().float()
        slope = gamma / deviation
        self._slope, self._intercept = slope.float(), (beta - slope * mean).float()
        self._wide = self._factor, self._offset, torch.where(self.withheld, source[1], 0.0)
        self._factor, self._offset = self._factor.float(), self._offset.float()
        self._together: dict[frozenset[int], tuple[Tensor, ...]] = {}

    def recover(self, index: int, staged: StagedMoments) -> StagedMoments:
        """Moments of a BatchNorm's input from those of the folded layer's output.

        Channels that are withheld show the source's statistics, unless a frame is not finite.
        """
        span = self._spans[index]
        mean = torch.addcmul(self._offset[span], staged.mean, self._factor[span])
        inverse = staged.inverse * self._inverse[span]
        if self._withholds[index]:
            inverse = torch.where(self.withheld[span], self._source_inverse[span], inverse)
        return StagedMoments(mean, inverse)

    def recover_wide(self, index: int, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """As `recover`, of mean and variance, `[frames, channels]` float64."""
        span = self._spans[index]
        factor, offset, kept = (one[span] for one in self._wide)
        return torch.addcmul(offset, mean, factor), torch.addcmul(kept, var, factor.square())

    def recover_in_place(self, room: Tensor, indices: frozenset[int]) -> None:
        """As `recover_wide`, for some layers at once, in `[2, frames, padded channels]`."""
        if indices not in self._together:
            shown = torch.zeros_like(self.channels)
            for index in indices:
                shown[self._spans[index]] = True
            factor, offset, kept = self._wide
            self._together[indices] = (
                torch.where(shown, factor, 1.0),
                torch.where(shown, offset, 0.0),
                torch.where(shown, factor.square(), 1.0),
                torch.where(shown, kept, 0.0),
            )
        factor, offset, square, kept = self._together[indices]
        torch.addcmul(offset, room[0], factor, out=room[0])
        torch.addcmul(kept, room[1], square, out=room[1])

    def outputs(self, index: int, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """What moves a folded layer's output as `scale` and `shift` would move the input.

        `z' = gamma (scale x + shift - mean) / sqrt(var + eps) + beta = scale z + shift'`.
        """
        span = self._spans[index]
        shift = shift * self._slope[span]
        return scale, shift.addcmul_(1.0 - scale, self._intercept[span])

    def committed(self, statistics: Tensor, *, at_once: bool) -> None:
        """Statistics were committed, as for `write`; fold them in when that is due."""
        self._commits += 1
        if at_once or self._commits >= self.every:
            self.write(statistics)

    def write(self, statistics: Tensor) -> None:
        """Fold statistics in, `[2, padded channels]` fp32; nothing is done where nothing changed.

        On a device, asking would mean waiting for it.
        """
        self._commits = 0
        with torch.inference_mode(False), torch.no_grad():
            if statistics.device.type == "cpu" and torch.equal(statistics, self.held):
                return
            self.held = statistics.clone()
            for index, layer in self._layers.items():
                span, dtype = self._spans[index], layer.running_mean.dtype
                with writable(layer.running_mean):
                    layer.running_mean.copy_(statistics[0, span])
                    layer.running_var.copy_(statistics[1, span])
                if dtype != torch.float32:  # what is folded in is rounded
                    self.held[0, span] = layer.running_mean
                    self.held[1, span] = layer.running_var
                layer.refold()
            self._derive()

    def restore(self) -> None:
        """Give the layers the weights that they had; their statistics are the source's already."""
        with torch.inference_mode(False), torch.no_grad():
            moved = not torch.equal(self.held, self._bank.source)
            for index, layer in self._layers.items():
                kept = self._pristine[index]
                if not moved:
                    continue
                if kept is None:
                    layer.refold()
                else:
                    with writable(layer.weight):
                        layer.weight.copy_(kept[0])
                        layer.bias.copy_(kept[1])
            self.held = self._bank.source.clone()
            self._derive()
        self._commits = 0

    def weights(self) -> list[tuple[FoldedLayer, Tensor, Tensor]]:
        """Each layer with its weight and bias."""
        return [(layer, layer.weight, layer.bias) for layer in self._layers.values()]
