"""The first two moments of a BatchNorm input, and the exact ways to combine them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """How many values were seen, their mean and their population variance, channel by channel.

    A value: operations return a new object and leave their operands alone. The three tensors
    broadcast against each other, usually `[channels]` or `[rows, channels]`; `count` may be
    fractional, because frames can be weighted.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).T
        >>> parts = Moments.of(x[:1]).merge(Moments.of(x[1:]))
        >>> parts.mean.item(), parts.var.item()
        (2.5, 1.25)
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Moments of `values`, shape `[n, channels]`, over the first dimension, in float64."""
        wide = values.double()
        var, mean = torch.var_mean(wide, dim=0, correction=0)
        return cls(torch.full_like(mean, float(values.shape[0])), mean, var)

    @classmethod
    def from_shifted_sums(
        cls, count: Tensor, shift: Tensor, total: Tensor, total_of_squares: Tensor
    ) -> Moments:
        """Moments from sums of `x - shift` and `(x - shift)**2` over `count` values.

        A shift near the mean keeps the subtraction below from cancelling: with
        `|mean - shift| < sigma` the variance keeps all but one bit of its sums' precision.
        A count of zero gives mean `shift` and variance zero.
        """
        safe = torch.where(count > 0, count, 1.0)
        offset = total / safe
        var = (total_of_squares / safe - offset.square()).clamp(min=0.0)
        return cls(count, shift + offset, var)

    def part(self, span: slice) -> Moments:
        """Those of some channels."""
        count = self.count if self.count.shape[-1:] == (1,) else self.count[..., span]
        return Moments(count, self.mean[..., span], self.var[..., span])

    def blend(self, other: Moments, weight: Tensor | float) -> Moments:
        """The moments of a mixture: `other` with probability `weight`, `self` otherwise.

        `mean = mu + a d` and `var = (1-a) v + a v' + a (1-a) d**2` with `d = mu' - mu`. The last
        term is what PyTorch's running variance leaves out: the spread *between* the two. `count`
        is the sum of both counts.
        """
        weight = torch.as_tensor(weight, dtype=self.mean.dtype, device=self.mean.device)
        difference = other.mean - self.mean
        mean = torch.addcmul(self.mean, difference, weight)
        within = torch.lerp(self.var, other.var, weight)
        var = torch.addcmul(within, difference.square_(), weight * (1.0 - weight))
        return Moments(self.count + other.count, mean, var)

    def merge(self, other: Moments) -> Moments:
        """The exact moments of both samples together.

        Equation (2) of the AdaBN paper prints `mu += d k / n` with `n` the count *before* the
        batch; the merge is only exact when divided by the count after it, as here.

        Reference:
            Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
            variances", 1979.
        """
        total = self.count + other.count
        return self.blend(other, other.count / torch.where(total > 0, total, 1.0))

    @property
    def std(self) -> Tensor:
        """Population standard deviation."""
        return self.var.sqrt()

    @property
    def unbiased_var(self) -> Tensor:
        """Variance with Bessel's correction; the population variance where `count <= 1`."""
        bessel = self.count / (self.count - 1.0).clamp(min=1e-12)
        return torch.where(self.count > 1.0, self.var * bessel, self.var)

    def __repr__(self) -> str:
        return (
            f"Moments(channels={tuple(self.mean.shape)}, dtype={self.mean.dtype}, "
            f"device={self.mean.device})"
        )


def location_scale_distance(a: Moments, b: Moments, eps: Tensor) -> Tensor:
    """`d^2 / sqrt(v v') + l^2 / 2` per channel, with `l = ln(v / v')`; 0 when equal.

    Scale-free and symmetric; agrees with Jeffreys' divergence of two normal distributions for
    small differences, without its `1/r` blow-up when one variance is close to zero. The layers'
    `eps` is added to both variances, because that is what normalisation sees.

    Args:
        a: moments, `[..., channels]`.
        b: moments that broadcast against `a`.
        eps: `[channels]`.
    """
    va, vb = a.var + eps, b.var + eps
    scale = (va / vb).log_().square_().mul_(0.5)
    return (a.mean - b.mean).square_().div_((va * vb).sqrt_()).add_(scale)
