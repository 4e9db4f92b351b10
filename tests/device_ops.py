"""Laws of the operations of a step on a device, for any implementation on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from streamadapt.moments import Moments
from streamadapt.ops.apply.reference import apply, collect
from streamadapt.ops.apply.shapes import Shape, shape_of
from streamadapt.ops.correct.reference import correct
from streamadapt.ops.device import DeviceOperations

SHAPES = {
    "one of everything": (1, 1, 1, 1),
    "three channels": (2, 3, 7, 5),
    "twenty-four": (3, 24, 14, 14),
    "forty": (2, 40, 7, 7),
    "many channels": (1, 2048, 7, 7),
    "one channel": (2, 1, 9, 9),
    "several pieces": (1, 8, 66, 70),
    "one position": (2, 40, 1, 1),
    "volume": (2, 6, 3, 5, 4),
    "sequence": (2, 5, 33),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 2e-2}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def inputs(
    size: tuple[int, ...], dtype: torch.dtype, *, manner: str, device: str, offset: float = 0.0
) -> Tensor:
    """Random values in some order: `contiguous`, `channels last`, `strided` or `unaligned`."""
    generator = torch.Generator().manual_seed(len(size) + sum(size))
    x = (torch.randn(size, generator=generator) + offset).to(dtype).to(device)
    if manner == "channels last":
        return x.contiguous(memory_format=_LAST.get(x.dim(), torch.contiguous_format))
    if manner == "strided":
        wide = torch.full((size[0], 2 * size[1], *size[2:]), 777.0, dtype=dtype, device=device)
        return wide[:, 1::2].copy_(x)
    if manner == "unaligned":
        return (
            torch.full((x.numel() + 1,), 777.0, dtype=dtype, device=device)[1:].view(size).copy_(x)
        )
    return x


def tables(rows: int, channels: int, device: str, *, centre: float = 0.0) -> tuple[Tensor, ...]:
    """Scale, shift and centre of rows, with a row stride of their own."""
    generator = torch.Generator().manual_seed(rows + channels)
    room = torch.randn(rows, 3, channels + 5, generator=generator)
    room[:, 2] = 0.3 * room[:, 2] + centre
    return room.to(device)[:, :, 1 : channels + 1].unbind(1)


def check_apply(
    do: DeviceOperations,
    size: tuple[int, ...],
    dtype: torch.dtype,
    *,
    manner: str,
    device: str = "cpu",
    rows: int = 1,
    adds: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    offset: float = 0.0,
) -> None:
    """Outputs and moments are float64's within rounding; what is not theirs is left alone."""
    x = inputs(size, dtype, manner=manner, device=device, offset=offset)
    residual = inputs(size, dtype, manner=manner, device=device).mul_(0.5) if adds else None
    scale, shift, centre = tables(rows, size[1], device, centre=offset)
    of = None if rows == 1 else (torch.arange(size[0], device=device) * 2 + 1) % rows
    wanted = apply(x, scale, shift, of, residual, *bounds)
    wide = wanted.abs().max().clamp(min=1.0)
    first, second = collect(x, centre, of)
    shape = shape_of(x) or Shape(*size[:2], math.prod(size[2:]), False, x.element_size())
    for in_place in (False, True):
        sums = torch.full((shape.sums + 7,), torch.nan, device=device)
        given = (scale, shift, centre, of, residual, *bounds)
        kept = x.clone(memory_format=torch.preserve_format)
        if in_place:
            y = inputs(size, dtype, manner=manner, device=device, offset=offset)
            around = y._base
            untouched = None if around is None else int((around == 777.0).sum())
            do.apply_collect_(y, *given, sums)
            if around is not None:
                assert int((around == 777.0).sum()) >= (untouched or 0)
        else:
            y = do.apply_collect(x, *given, sums)
            assert torch.equal(x, kept)
            assert y.stride() == torch.empty_like(x).stride()
        assert float((y.double() - wanted).abs().max() / wide) < ROUNDING[dtype]
        _check_sums(sums, shape, first, second)
        without = do.apply_collect(x, *given, None)
        assert torch.equal(without, y)
    again = torch.full((shape.sums + 7,), torch.nan, device=device)
    do.collect_partials(x, centre, of, again)
    _check_sums(again, shape, first, second)
    _check_moments(do, again, shape, x, centre, of)


def _check_sums(sums: Tensor, shape: Shape, first: Tensor, second: Tensor) -> None:
    found = sums[: shape.sums].view(shape.splits, 2, shape.frames, shape.channels).double()
    total, squares = found.sum(dim=0)
    # Of a sum of n values, rounding is told by the root of the sum of their squares.
    scale = second.sqrt() * math.sqrt(max(shape.positions, 1)) + 1e-3
    assert float(((total - first).abs() / scale).max()) < 3e-6
    assert float(((squares - second).abs() / (second + 1e-6)).max()) < 3e-6
    assert bool(torch.isnan(sums[shape.sums :]).all())


def _check_moments(
    do: DeviceOperations, sums: Tensor, shape: Shape, x: Tensor, centre: Tensor, of: Tensor | None
) -> None:
    room = torch.full((2, shape.frames, shape.channels + 3), torch.nan).double().to(x.device)
    mean, var = room[:, :, : shape.channels]
    do.finalise_layer_(sums, centre, of, shape.splits, shape.positions, mean, var)
    flat = x.double().flatten(2)
    wanted = flat.var(dim=2, correction=0)
    near = centre[:1].double().expand(shape.frames, -1) if of is None else centre.double()[of]
    apart = wanted + (flat.mean(dim=2) - near).square() + 1e-6  # rounding is of `x - centre`
    assert float(((mean - flat.mean(dim=2)).abs() / apart.sqrt()).max()) < 3e-6
    assert float(((var - wanted).abs() / apart).max()) < 3e-6
    assert bool(torch.isnan(room[:, :, shape.channels :]).all())


def check_what_is_no_number(do: DeviceOperations, device: str = "cpu") -> None:
    """NaN stays NaN through any bounds, infinity is clamped; other frames are none the worse."""
    for manner in ("contiguous", "channels last"):
        x = inputs((3, 8, 6, 6), torch.float32, manner=manner, device=device)
        x[0, 2, 3, 3], x[1, 4, 0, 0] = torch.nan, torch.inf
        scale, shift, centre = tables(1, 8, device)
        shape = shape_of(x)
        assert shape is not None
        sums = torch.zeros(shape.sums, device=device)
        y = do.apply_collect(x, scale, shift, centre, None, None, 0.0, 6.0, sums)
        wanted = apply(x, scale, shift, None, None, 0.0, 6.0).float()
        torch.testing.assert_close(y, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)
        found = sums.view(shape.splits, 2, 3, 8).sum(dim=0).isfinite()
        assert not bool(found[0, 0, 2]) and not bool(found[0, 1, 4])
        mean, var = torch.zeros(2, 3, 8, dtype=torch.float64, device=device)
        do.finalise_layer_(sums, centre, None, shape.splits, 36, mean, var)
        assert (~var.isfinite()).nonzero().tolist() == [[0, 2], [1, 4]]


def check_nothing(do: DeviceOperations, device: str = "cpu") -> None:
    """Empty batches, and frames without positions."""
    for size in ((0, 4, 5, 5), (2, 4, 0, 5)):
        x = torch.zeros(size, device=device)
        scale, shift, centre = tables(1, 4, device)
        sums = torch.full((64,), torch.nan, device=device)
        y = do.apply_collect(x, scale, shift, centre, None, None, 0.0, 1.0, sums)
        assert y.shape == x.shape


def check_all_layers(do: DeviceOperations, device: str = "cpu") -> None:
    """Moments of all layers at once are those of each; layers that have none are told apart."""
    generator = torch.Generator().manual_seed(3)
    for frames, rows in ((1, 1), (5, 3)):
        columns, blocks, at, start = [], [], 0, 0
        for index, (channels, positions, splits) in enumerate(
            ((7, 49, 1), (40, 1, 1), (64, 3136, 37), (33, 0, 0))
        ):
            columns.append([at, splits, positions, start, channels])
            at += splits * 2 * frames * channels
            blocks += [index] * -(-channels // 32)
            start += -(-channels // 32) * 32
        sums = torch.randn(at, generator=generator).abs().mul_(100.0).to(device)
        layers = torch.tensor(columns).t().contiguous().to(device)
        centre = torch.randn(rows, 4, start, generator=generator).to(device)[:, 3]
        of = None if rows == 1 else torch.randint(rows, (frames,), generator=generator).to(device)
        room = torch.full((2, frames, start), torch.nan).double().to(device)
        do.finalise_(sums, layers, torch.tensor(blocks).to(device), centre, of, *room)
        wanted = torch.zeros_like(room)
        wanted[1] = 1.0
        for offset, splits, positions, first, channels in columns[:3]:
            part = sums[offset : offset + splits * 2 * frames * channels].double()
            total, squares = part.view(splits, 2, frames, channels).sum(dim=0) / positions
            near = centre[:, first : first + channels].double()
            near = near.expand(frames, -1) if of is None else near[of]
            wanted[0, :, first : first + channels] = near + total
            wanted[1, :, first : first + channels] = (squares - total.square()).clamp(min=0.0)
        torch.testing.assert_close(room, wanted, rtol=1e-9, atol=1e-9)


def check_correction(do: DeviceOperations, device: str = "cpu") -> None:
    """Single frames are normalised as the specification has it, and usual ones like their row."""
    for frames, rows, channels in ((1, 1, 1), (4, 1, 24), (6, 3, 40), (3, 2, 2048)):
        mean, var, table, of, usual, eps = _frames_of(frames, rows, channels, device)
        foreign = torch.full((frames,), 0.125, dtype=torch.float64, device=device)
        out = torch.full((frames, 3, channels + 1), torch.nan, device=device)[:, :, :channels]
        do.correct_own_(mean, var, table, of, eps, usual, False, foreign, out)
        held = table[0].expand(frames, -1, -1) if of is None else table[of]
        scale, shift, precision, centre = held.double().unbind(1)
        row = Moments(torch.zeros(()), centre, 1.0 / precision - eps)
        wanted, weight = correct(
            Moments(torch.zeros(()), mean, var),
            row,
            usual=usual,
            eps=torch.full((channels,), eps, dtype=torch.float64, device=device),
        )
        leant = scale * ((row.var + eps) / (wanted.var + eps)).sqrt()
        moved = shift + centre * scale - wanted.mean * leant
        torch.testing.assert_close(out[:, 0].double(), leant, rtol=3e-5, atol=3e-6)
        torch.testing.assert_close(out[:, 1].double(), moved, rtol=3e-5, atol=3e-5)
        usual_ones = weight[:, 0] == 0
        assert torch.equal(out[usual_ones, :2], held[usual_ones, :2])
        assert torch.equal(out[:, 2], held[:, 3])
        found = (4.0 * weight[:, 0] - 3.0).clamp(min=0.125)
        torch.testing.assert_close(foreign, found, rtol=1e-4, atol=1e-5)
        later = torch.full((frames, 3, channels), torch.nan, device=device)
        do.correct_later_(foreign, table, table[0].contiguous(), of, later)
        source = table[0].double()
        log = (precision / source[2]).log().clamp(-7.0, 7.0)
        far = foreign.unsqueeze(1)
        leant = scale * (-0.5 * far * log).exp()
        towards = centre + far * (source[3] - centre)
        torch.testing.assert_close(later[:, 0].double(), leant, rtol=3e-5, atol=3e-6)
        moved = shift + centre * scale - towards * leant
        torch.testing.assert_close(later[:, 1].double(), moved, rtol=3e-5, atol=3e-5)


def _frames_of(frames: int, rows: int, channels: int, device: str) -> tuple[Any, ...]:
    """Frames, half of them far from their row, one of them not finite."""
    generator = torch.Generator().manual_seed(frames + channels)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    eps = 1e-3
    centre, spread = draw(rows, channels), draw(rows, channels).exp()
    weight, bias = draw(channels), draw(channels)
    scale = weight / (spread + eps).sqrt()
    fields = [scale, bias - centre * scale, 1.0 / (spread + eps), centre]
    table = torch.stack(fields, dim=1)
    of = torch.arange(frames) % rows
    far = torch.tensor([0.01, 2.0]).repeat(frames)[:frames, None]
    mean = (centre[of] + far * draw(frames, channels)).double()
    var = (spread[of] * (far * draw(frames, channels)).exp()).double()
    if frames > 4:
        mean[2, 0] = torch.nan
    of = None if rows == 1 else of.to(device)
    return mean.to(device), var.to(device), table.to(device), of, 0.3, eps


def check_tables(do: DeviceOperations, device: str = "cpu") -> None:
    """Tables hold what layers normalise with: the source's first, then the rows'."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(3, 4, 608, generator=generator)
    source, affine = torch.randn(2, 2, 608, generator=generator)
    data[:, 1], source[1] = data[:, 1].exp(), source[1].exp()
    rows, eps = torch.tensor([2, 0]), torch.full((608,), 1e-3)
    out = torch.full((3, 4, 608), torch.nan, device=device)
    given = (one.to(device) for one in (data, source, rows, affine.contiguous(), eps))
    do.fill_tables_(*given, out)
    held = torch.cat([source[None], data[rows, :2]]).double()
    mean, var = held.unbind(1)
    scale = affine[0].double() / (var + eps.double()).sqrt()
    wanted = [scale, affine[1].double() - mean * scale, 1.0 / (var + eps.double()), mean]
    torch.testing.assert_close(out.cpu(), torch.stack(wanted, dim=1).float(), rtol=1e-5, atol=1e-6)


def matrix() -> Iterator[dict[str, Any]]:
    """Combinations for `check_apply`: each shape in each dtype and order, with changing company."""
    companies = (
        {},
        {"rows": 3, "bounds": (0.0, math.inf)},
        {"adds": True, "bounds": (0.0, 6.0)},
        {"rows": 2, "adds": True, "offset": 100.0},
    )
    count = 0
    for name, size in SHAPES.items():
        for dtype in DTYPES:
            for manner in ("contiguous", "channels last", "strided", "unaligned"):
                if manner == "channels last" and len(size) not in _LAST:
                    continue
                company = companies[count % len(companies)]
                if dtype is torch.bfloat16 and company.get("offset"):
                    company = {**company, "offset": 0.0}
                count += 1
                yield {"name": name, "dtype": dtype, "manner": manner, **company}
