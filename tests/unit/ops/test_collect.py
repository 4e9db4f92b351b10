"""Per-frame moments against float64: every layout, dtype and size a BatchNorm input may have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from streamadapt.ops.collect import Scratch, collect
from streamadapt.ops.collect.reference import collect as reference

# What is promised, in units in the last place of the mean or 1e-5 sigma, whichever is more. Inputs
# in half precision are exact in fp32, so they cost nothing more.
MEAN_ULPS = {"exact": 1.0, "fast": 4.0}
SIGMA_ULPS = {"exact": 0.0, "fast": 2.0}
CHANNELS_LAST_LONE_ULPS = 2.0  # times the root of positions: a plain fp32 sum over them

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SIZES = ((1, 1), (1, 3), (7, 7), (14, 14))
RATIOS = (0.0, 3.0, 30.0, 1000.0)


def plain(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def every_other(x: Tensor) -> Tensor:
    """Frames and columns taken out of a larger tensor."""
    larger = torch.full((2 * x.shape[0], x.shape[1], x.shape[2], x.shape[3] + 5), 777.0)
    view = larger.to(x.dtype)[::2, :, :, 2 : 2 + x.shape[3]]
    return view.copy_(x)


def every_other_channel(x: Tensor) -> Tensor:
    larger = torch.full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), 777.0, dtype=x.dtype)
    return larger[:, 1::2].copy_(x)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def frames_innermost(x: Tensor) -> Tensor:
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def expanded(x: Tensor) -> Tensor:
    """One position that stands for all of them: strides of zero."""
    return x[:, :, :1, :1].expand_as(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        plain,
        channels_last,
        every_other,
        every_other_channel,
        transposed,
        frames_innermost,
        expanded,
    )
}


def poisoned() -> Scratch:
    """A scratch buffer, large enough for all that follows, full of NaN."""
    scratch = Scratch()
    scratch.like(torch.empty(1 << 17)).fill_(float("nan"))
    return scratch


def draw(shape: tuple[int, ...], ratio: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Channels of different scales, each with its mean `ratio` standard deviations from zero."""
    rng = np.random.default_rng([seed, *shape])
    scale = rng.uniform(0.1, 3.0, (1, shape[1], *(1 for _ in shape[2:])))
    return torch.from_numpy((rng.normal(size=shape) + ratio) * scale).to(dtype)


def inputs(frames: int, channels: int, dtype: torch.dtype) -> Iterator[Tensor]:
    for height, width in SIZES:
        for ratio in RATIOS:
            yield draw((frames, channels, height, width), ratio, dtype)


def assert_collected(x: Tensor, *, exact: bool, mean_ulps: float | None = None) -> None:
    before = x.clone()
    staged = collect(x, scratch=poisoned(), exact=exact)
    assert torch.equal(x, before)
    assert staged.mean.dtype == staged.inverse.dtype == torch.float32
    assert staged.mean.shape == staged.inverse.shape == x.shape[:2]
    mean, var = (tensor.numpy() for tensor in staged.moments())
    flat = x.double().numpy().reshape(*x.shape[:2], -1)
    wanted, sigma = flat.mean(axis=2), flat.std(axis=2)
    kind = "exact" if exact else "fast"
    ulp = np.spacing(np.abs(wanted).astype(np.float32)).astype(float)
    allowed = np.maximum((mean_ulps or MEAN_ULPS[kind]) * ulp, 1e-5 * sigma)
    assert np.all(np.abs(mean - wanted) <= allowed), np.max(np.abs(mean - wanted) / allowed)
    ulps = np.where(sigma < ulp, 4.0, SIGMA_ULPS[kind])  # of equal values, only rounding is seen
    assert np.all(np.abs(np.sqrt(var) - sigma) <= np.maximum(ulps * ulp, 1e-5 * sigma))


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 24, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_in_any_layout(layout: str, channels: int, dtype: torch.dtype, exact: bool) -> None:
    for x in inputs(3, channels, dtype):
        assert_collected(LAYOUTS[layout](x), exact=exact)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 24, 40])
@pytest.mark.parametrize("layout", ["plain", "channels_last"])
def test_a_batch_of_one(layout: str, channels: int, dtype: torch.dtype, exact: bool) -> None:
    for x in inputs(1, channels, dtype):
        loose = layout == "channels_last" and not exact
        ulps = max(4.0, CHANNELS_LAST_LONE_ULPS * math.prod(x.shape[2:]) ** 0.5) if loose else None
        assert_collected(LAYOUTS[layout](x), exact=exact, mean_ulps=ulps)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spatial", [(), (1,), (50,), (3, 7, 5)])
def test_inputs_that_are_no_images(
    spatial: tuple[int, ...], dtype: torch.dtype, exact: bool
) -> None:
    for channels in (1, 24):
        for ratio in RATIOS:
            x = draw((3, channels, *spatial), ratio, dtype)
            assert_collected(x, exact=exact)
            assert_collected(x.transpose(0, 1).contiguous().transpose(0, 1), exact=exact)
            if len(spatial) == 3:
                video = x.contiguous(memory_format=torch.channels_last_3d)
                assert_collected(video, exact=exact)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
def test_a_large_map(exact: bool) -> None:
    for ratio in RATIOS:
        for layout in ("plain", "channels_last"):
            assert_collected(
                LAYOUTS[layout](draw((2, 3, 120, 160), ratio, torch.float32)), exact=exact
            )


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("layout", ["plain", "channels_last", "transposed"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_a_bad_frame_spoils_its_own_moments_only(layout: str, bad: float, exact: bool) -> None:
    x = draw((4, 6, 7, 7), 1.0, torch.float32)
    clean = collect(LAYOUTS[layout](x), scratch=poisoned(), exact=exact).moments()
    x[2, 3, 5, 1] = bad
    spoiled = collect(LAYOUTS[layout](x), scratch=poisoned(), exact=exact).moments()
    others = [0, 1, 3]
    for before, after in zip(clean, spoiled, strict=True):
        assert torch.equal(before[others], after[others])
    mean, var = (tensor[2] for tensor in spoiled)
    assert not torch.isfinite(mean[3] + var[3])
    assert torch.isfinite(mean[:3]).all() and torch.isfinite(var[:3]).all()


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_frames_values_change_no_bit(layout: str, dtype: torch.dtype, exact: bool) -> None:
    for height, width in SIZES:
        x = draw((4, 24, height, width), 3.0, dtype)
        other = draw((4, 24, height, width), 30.0, dtype, seed=1)
        other[1] = x[1]
        one, two = (
            collect(LAYOUTS[layout](batch), scratch=poisoned(), exact=exact) for batch in (x, other)
        )
        assert torch.equal(one.mean[1], two.mean[1])
        assert torch.equal(one.inverse[1], two.inverse[1])


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
def test_a_constant_channel_has_no_variance(exact: bool) -> None:
    values = torch.tensor([0.0, 1.0, -0.1, 1234.567])
    for shape in ((2, 4), (2, 4, 9), (2, 4, 1, 1), (2, 4, 14, 14)):
        x = values.view(1, 4, *(1 for _ in shape[2:])).expand(shape).contiguous()
        for layout in (x, channels_last(x) if x.dim() == 4 else x):
            mean, var = collect(layout, scratch=poisoned(), exact=exact).moments()
            torch.testing.assert_close(mean.float(), values.expand(2, 4), rtol=2e-7, atol=0)
            assert (var <= (values.double() * 2e-7).square() + 1e-29).all()


def test_the_scratch_buffer_is_reused_and_ordinary() -> None:
    with torch.inference_mode():
        scratch = Scratch()
        small = scratch.like(torch.empty(2, 3))
    large = scratch.like(torch.empty(4, 5, 6))
    again = scratch.like(torch.empty(2, 5))
    assert small.shape == (2, 3) and large.shape == (4, 5, 6) and again.shape == (2, 5)
    assert again.data_ptr() == large.data_ptr()
    assert not scratch.like(torch.empty(1)).is_inference()


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_the_reference_is_what_numpy_says(shape: tuple[int, ...]) -> None:
    x = draw(shape, 3.0, torch.float32)
    flat = x.double().numpy().reshape(*shape[:2], -1)
    mean, var = reference(x)
    np.testing.assert_allclose(mean, flat.mean(axis=2), rtol=1e-14)
    np.testing.assert_allclose(var, flat.var(axis=2), rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (2, 4, 0)])
def test_the_reference_takes_empty_inputs(shape: tuple[int, ...]) -> None:
    mean, var = reference(torch.empty(shape))
    assert mean.shape == var.shape == shape[:2]
    assert mean.eq(0).all() and var.eq(0).all()
