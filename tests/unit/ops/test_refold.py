"""Folding statistics into weights: against float64, and as a custom op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streamadapt.ops.refold import refold_
from streamadapt.ops.refold.reference import refold

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SHAPES = {
    "conv": ((6, 3, 3, 3), 0, 1),
    "pointwise": ((6, 5, 1, 1), 0, 1),
    "linear": ((6, 7), 0, 1),
    "transposed": ((4, 6, 3, 3), 1, 1),
    "transposed, groups": ((4, 3, 3, 3), 1, 2),
}


def arguments(shape: tuple[int, ...], dtype: torch.dtype, shift: bool) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    offset = draw(6) if shift else None
    return [draw(*shape), offset, draw(6), draw(6), draw(6) * 3, draw(6).abs() + 0.1]


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", SHAPES)
def test_it_is_the_reference_in_the_weights_dtype(
    kind: str, dtype: torch.dtype, shift: bool
) -> None:
    shape, dim, groups = SHAPES[kind]
    given = arguments(shape, dtype, shift)
    weight, bias = torch.full(shape, torch.nan, dtype=dtype), torch.full((6,), torch.nan).to(dtype)
    refold_(weight, bias, *given, 1e-3, dim, groups)
    wanted = refold(*given, eps=1e-3, dim=dim, groups=groups)
    for got, expected in zip((weight, bias), wanted, strict=True):
        assert got.dtype == dtype
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=4 * tolerance)


def test_channels_last_weights_keep_their_layout() -> None:
    given = arguments((6, 3, 3, 3), torch.float32, False)
    weight = torch.empty(6, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    strides, address = weight.stride(), weight.data_ptr()
    refold_(weight, torch.empty(6), *given, 1e-5)
    assert weight.stride() == strides and weight.data_ptr() == address
    wanted, _ = refold(*given, eps=1e-5, dim=0, groups=1)
    torch.testing.assert_close(weight.double(), wanted, rtol=2e-6, atol=1e-6)


def test_the_reference_is_a_batchnorm_after_a_layer() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2).double()
    norm = nn.BatchNorm2d(6).double().eval()
    _, _, gamma, beta, mean, var = arguments((4, 3, 3, 3), torch.float64, True)
    with torch.no_grad():
        for target, value in (
            (norm.weight, gamma),
            (norm.bias, beta),
            (norm.running_mean, mean),
            (norm.running_var, var),
        ):
            target.copy_(value)
        x = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        wanted = norm(layer(x))
        layer.weight.data, layer.bias.data = refold(
            layer.weight, layer.bias, gamma, beta, mean, var, eps=norm.eps, dim=1, groups=2
        )
        torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("kind", SHAPES)
def test_opcheck(kind: str) -> None:
    shape, dim, groups = SHAPES[kind]
    given = arguments(shape, torch.float32, True)
    torch.library.opcheck(
        torch.ops.streamadapt.refold_,
        (torch.zeros(shape), torch.zeros(6), *given, 1e-5, dim, groups),
    )
