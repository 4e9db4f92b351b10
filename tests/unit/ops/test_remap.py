"""Moving a layer's input does what changing its statistics would do, by `F.batch_norm` itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamadapt.moments import Moments
from streamadapt.ops.remap import remap_coefficients

CHANNELS = 7


def moments(generator: torch.Generator, *shape: int, offset: float = 0.0) -> Moments:
    mean = torch.randn(shape, generator=generator, dtype=torch.float64) + offset
    var = torch.randn(shape, generator=generator, dtype=torch.float64).exp()
    return Moments(torch.zeros_like(mean), mean, var)


def normalise(x: Tensor, by: Moments, affine: tuple[Tensor, Tensor], eps: float) -> Tensor:
    return F.batch_norm(x, by.mean, by.var, *affine, training=False, eps=eps)


@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_a_moved_input_is_normalised_like_the_wanted_statistics(
    offset: float, eps: float, spatial: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(1)
    source, wanted = moments(generator, CHANNELS), moments(generator, 3, CHANNELS, offset=offset)
    affine = (
        torch.randn(CHANNELS, generator=generator, dtype=torch.float64),
        torch.randn(CHANNELS, generator=generator, dtype=torch.float64),
    )
    eps_of = torch.full((CHANNELS,), eps, dtype=torch.float64)
    scale, shift = remap_coefficients(wanted, source, eps_of)
    assert scale.dtype == shift.dtype == torch.float32
    assert scale.shape == shift.shape == (3, CHANNELS)
    ones = (1,) * len(spatial)
    for row in range(3):
        x = torch.randn((2, CHANNELS, *spatial), generator=generator, dtype=torch.float64) + offset
        own = Moments(wanted.count[row], wanted.mean[row], wanted.var[row])
        moved = scale[row].view(1, -1, *ones).double() * x + shift[row].view(1, -1, *ones).double()
        torch.testing.assert_close(
            normalise(moved, source, affine, eps),
            normalise(x, own, affine, eps),
            rtol=1e-5,
            atol=1e-6 * (1.0 + offset),
        )


def test_on_the_source_an_input_is_not_moved_at_all() -> None:
    source = moments(torch.Generator().manual_seed(2), CHANNELS, offset=3.0)
    scale, shift = remap_coefficients(source, source, torch.full((CHANNELS,), 1e-5).double())
    assert scale.eq(1.0).all() and shift.eq(0.0).all()


def test_each_channel_has_its_own_eps() -> None:
    source = Moments(*(torch.full((2,), value, dtype=torch.float64) for value in (0.0, 1.0, 3.0)))
    wanted = Moments(*(torch.full((2,), value, dtype=torch.float64) for value in (0.0, 2.0, 0.0)))
    eps = torch.tensor([1.0, 0.2], dtype=torch.float64)
    scale, shift = remap_coefficients(wanted, source, eps)
    torch.testing.assert_close(scale, torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(shift, torch.tensor([-3.0, -7.0]))


def test_constant_channels_give_finite_coefficients() -> None:
    source = Moments(*(torch.full((1,), value, dtype=torch.float64) for value in (0.0, 5.0, 0.0)))
    wanted = Moments(*(torch.full((1,), value, dtype=torch.float64) for value in (0.0, 1.0, 0.0)))
    scale, shift = remap_coefficients(wanted, source, torch.full((1,), 1e-5).double())
    assert (scale.item(), shift.item()) == (1.0, 4.0)
