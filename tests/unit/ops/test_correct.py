"""Single frames' own statistics: the ATen kernels against the specification in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamadapt.moments import Moments
from streamadapt.ops.collect import StagedMoments
from streamadapt.ops.correct import frame_distance, frame_share, lean
from streamadapt.ops.correct.reference import correct
from streamadapt.ops.remap import remap_coefficients

CHANNELS, FRAMES, EPS = 6, 9, 1e-5


def drawn(seed: int, *shape: int, offset: float = 0.0, spread: float = 1.0) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64) + offset
    log = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Moments(torch.zeros_like(mean), mean, log.exp())


def staged(one: Moments) -> StagedMoments:
    return StagedMoments(one.mean.float(), one.var.rsqrt().float())


def native(
    frame: Moments, row: Moments, held: Moments, usual: float
) -> tuple[Tensor, Tensor, Tensor]:
    eps = torch.full((CHANNELS,), EPS, dtype=torch.float64)
    precision = (row.var + eps).reciprocal().float()
    distance, log = frame_distance(
        staged(frame), mean=row.mean.float(), precision=precision, eps=eps.float()
    )
    weight = frame_share(distance, usual=usual)
    scale, shift = lean(row, held, eps, mean=frame.mean.float(), log=log, weight=weight)
    return weight, scale, shift


@given(st.integers(0, 10**6), st.floats(0.05, 5.0), st.sampled_from([0.0, 20.0]))
def test_it_is_the_specification(seed: int, usual: float, offset: float) -> None:
    row = drawn(seed, FRAMES, CHANNELS, offset=offset)
    near = drawn(seed + 1, FRAMES, CHANNELS, spread=0.3)
    # From next to the row to far off.
    reach = torch.linspace(0.0, 3.0, FRAMES, dtype=torch.float64).unsqueeze(1)
    frame = Moments(row.count, row.mean + reach * near.mean, row.var * near.var**reach)
    frame = Moments(row.count, frame.mean.float().double(), frame.var)
    held = drawn(seed + 2, CHANNELS, offset=offset)
    eps = torch.full((CHANNELS,), EPS, dtype=torch.float64)
    wanted, share = correct(frame, row, usual=usual, eps=eps)
    weight, scale, shift = native(frame, row, held, usual)
    torch.testing.assert_close(weight, share, rtol=1e-4, atol=1e-4)
    expected = remap_coefficients(wanted, held, eps)
    torch.testing.assert_close(scale, expected[0], rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(shift, expected[1], rtol=2e-4, atol=2e-3)


def test_frames_within_the_usual_distance_keep_the_rows_statistics_to_the_bit() -> None:
    row = drawn(3, CHANNELS)
    frame = Moments(
        torch.zeros(4, CHANNELS), row.mean.expand(4, -1) + 0.1, row.var.expand(4, -1) * 1.1
    )
    weight, scale, shift = native(frame, row, row, usual=1.0)
    assert torch.equal(weight, torch.zeros(4, 1, dtype=torch.float64))
    assert torch.equal(scale, torch.ones(4, CHANNELS))
    assert torch.equal(shift, torch.zeros(4, CHANNELS))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_frames_that_are_not_finite_are_not_corrected_and_leave_the_others_alone(
    bad: float,
) -> None:
    row, frame = drawn(3, CHANNELS), drawn(4, FRAMES, CHANNELS, offset=5.0)
    clean = native(frame, row, row, usual=0.5)
    frame.mean[2, 1] = bad
    weight, scale, shift = native(frame, row, row, usual=0.5)
    assert float(weight[2]) == 0.0
    assert torch.equal(scale[2], torch.ones(CHANNELS))
    assert torch.equal(shift[2], torch.zeros(CHANNELS))
    others = [0, 1, *range(3, FRAMES)]
    for one, other in zip(clean, (weight, scale, shift), strict=True):
        assert torch.equal(one[others], other[others])


def test_the_further_the_more_and_a_constant_frame_no_more_than_published() -> None:
    row = drawn(5, CHANNELS)
    far = torch.linspace(0.1, 8.0, 30, dtype=torch.float64).unsqueeze(1)
    frame = Moments(
        torch.zeros(30, CHANNELS), row.mean + far * row.var.sqrt(), row.var.expand(30, -1)
    )
    weight, _, _ = native(frame, row, row, usual=1.0)
    assert (weight.diff(dim=0) >= 0).all()
    assert float(weight[0]) == 0.0 and 0.95 < float(weight[-1]) < 1.0
    black = Moments(
        torch.zeros(1, CHANNELS), torch.zeros(1, CHANNELS).double(), torch.zeros(1, CHANNELS)
    )
    _, scale, shift = native(black, row, row, usual=1.0)
    assert torch.isfinite(scale).all() and torch.isfinite(shift).all()
    assert (scale <= math.exp(3.5) * (1 + 1e-6)).all()
