"""How far two sets of BatchNorm statistics lie apart."""

from __future__ import annotations

from torch import Tensor

from streamadapt.moments import Moments


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
    return (a.mean - b.mean).square() / (va * vb).sqrt() + 0.5 * (va / vb).log().square()
