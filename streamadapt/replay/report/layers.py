"""How far each layer's statistics are from the source's, over the stream: a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from math import isfinite

import numpy as np

from streamadapt.replay.report.drawing import (
    DEPTH_LIGHT,
    Scale,
    drawing,
    label,
    shortened,
    text_width,
    ticks,
)
from streamadapt.replay.report.markup import Markup, short
from streamadapt.replay.result import PolicySeries, ReplayResult

_LEVELS = len(DEPTH_LIGHT)
_TOP = 8


def layer_map(ident: str, result: ReplayResult, series: PolicySeries, *, width: int) -> Markup:
    """Rows are layers, the first at the top; from left to right goes the stream.

    Args:
        ident: unique in the document.
        result: what `series` is part of.
        series: a policy with `layer_distance`.
        width: in pixels.
    """
    layers = list(series.layer_distance)
    values = np.array([series.layer_distance[name] for name in layers], dtype=np.float64)
    row = 16 if len(layers) <= 24 else max(5.0, 380 / len(layers))
    name_room = min(max(map(text_width, layers)) + 12, 0.3 * width)
    ends = np.cumsum(result.batch_frames)
    edges = _edges(series.layer_batches, ends)
    place = Scale(0, float(ends[-1]), name_room, width - 10)
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    paths: dict[int, list[str]] = {}
    parts = []
    shown_every = max(1, round(14 / row + 0.49))
    for index, name in enumerate(layers):
        y = _TOP + row * (index + 0.5)
        if index % shown_every == 0:
            parts.append(label(4, y + 4, shortened(name, pixels=name_room - 10)))
        level = [_level(value, top) for value in values[index]]
        at = 0
        for one, run in groupby(level):
            count = len(list(run))
            if one is not None:
                start, stop = place(edges[at]), place(edges[at + count])
                paths.setdefault(one, []).append(f"M{start:.1f} {y:.1f}H{stop:.1f}")
            at += count
    parts += [
        f'<path class="cell depth-{one}" stroke-width="{row - 0.5:.1f}" d="{"".join(paths[one])}"/>'
        for one in sorted(paths)
    ]
    bottom = _TOP + row * len(layers)
    parts += _domain_lines(result, place, bottom)
    parts += [
        label(place(tick), bottom + 16, f"{tick:,.0f}", anchor="middle")
        for tick in ticks(0, float(ends[-1]), count=6 if width > 600 else 3)
        if tick <= ends[-1] and place(tick) < width - 24
    ]
    parts.append(label((name_room + width) / 2, bottom + 32, "frames seen", anchor="middle"))
    parts += _key(top, y=bottom + 54)
    farthest = layers[int(np.nanargmax(np.nan_to_num(values).mean(axis=1)))]
    return drawing(
        ident,
        title=f"Distance from source by layer: {series.name}",
        description=f"Farthest on average: {farthest}. Highest value {short(top)}.",
        size=(width, bottom + 62),
        parts=parts,
    )


def _edges(batches: Sequence[int], ends: np.ndarray) -> list[float]:
    """Where the columns begin and end, in frames: half way from one measured batch to the next."""
    middles = [float(ends[batch]) for batch in batches]
    between = [(a + b) / 2 for a, b in pairwise(middles)]
    return [0.0, *between, float(ends[-1])]


def _level(value: float, top: float) -> int | None:
    if not isfinite(value):
        return None
    return min(int(_LEVELS * value / top), _LEVELS - 1) if top > 0 else 0


def _domain_lines(result: ReplayResult, place: Scale, bottom: float) -> list[str]:
    if (np.diff(result.frame_domains) < 0).any():
        return []
    return [
        f'<line class="axis" x1="{place(d.first_frame):.1f}" x2="{place(d.first_frame):.1f}" '
        f'y1="{_TOP}" y2="{bottom:.1f}" stroke-dasharray="2 3"/>'
        for d in result.domains[1:]
    ]


def _key(top: float, *, y: float) -> list[str]:
    parts = [label(4, y, "distance 0")]
    x = 80.0
    for one in range(_LEVELS):
        parts.append(
            f'<path class="cell depth-{one}" stroke-width="10" d="M{x:.0f} {y - 4:.1f}h18"/>'
        )
        x += 18
    parts.append(label(x + 6, y, short(top)))
    return parts
