"""What a policy costs against what it brings, and which ones nothing beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from streamadapt.replay.report.drawing import (
    Scale,
    drawing,
    label,
    ratio_ticks,
    shortened,
    text_width,
    ticks,
)
from streamadapt.replay.report.markup import Markup, html, listed, percent, short, times
from streamadapt.replay.report.over_time import shown
from streamadapt.replay.report.pool import Pool, Rank

_LEFT, _RIGHT, _TOP = 52, 14, 14
_LINE = 15.0  # pixels from one label to the next


def front(ranks: Sequence[Rank]) -> list[Rank]:
    """Those that no other beats in cost and error together, cheapest first; oracles never.

    Of two with the same cost and error both stay.
    """
    known = [r for r in ranks if not r.oracle and isfinite(r.cost) and isfinite(r.error)]
    kept = [
        one
        for one in known
        if not any(
            other.cost <= one.cost
            and other.error <= one.error
            and (other.cost < one.cost or other.error < one.error)
            for other in known
        )
    ]
    return sorted(kept, key=lambda rank: (rank.cost, rank.error, rank.name))


def pareto(ident: str, pool: Pool, *, width: int, height: int) -> Markup | None:
    """Median latency over the baseline's against mean error; None where no latency is known."""
    ranks = [rank for rank in pool.ranks if isfinite(rank.cost) and isfinite(rank.error)]
    if len(ranks) < 2:
        return None
    best = front(ranks)
    x_marks = ratio_ticks(min(rank.cost for rank in ranks), max(rank.cost for rank in ranks))
    y_marks = ticks(0.0, max(rank.error for rank in ranks))
    bottom = _TOP + height
    place_x = Scale(x_marks[0], x_marks[-1], _LEFT + 8, width - _RIGHT - 8, logarithmic=True)
    place_y = Scale(y_marks[0], y_marks[-1], bottom, _TOP)
    parts = [
        f'<line class="rule" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{place_y(t):.1f}" '
        f'y2="{place_y(t):.1f}"/>'
        + label(_LEFT - 6, place_y(t) + 4, f"{100 * t:.0f} %", anchor="end")
        for t in y_marks
    ]
    parts += [label(place_x(t), bottom + 16, f"{short(t)} ×", anchor="middle") for t in x_marks]
    parts.append(label(_LEFT + 4, _TOP + 12, "mean error"))
    words = f"median latency over that of {pool.baseline}"
    parts.append(label((_LEFT + width - _RIGHT) / 2, bottom + 33, words, anchor="middle"))
    steps = "".join(
        f"{'M' if i == 0 else 'L'}{place_x(r.cost):.1f} {place_y(r.error):.1f}"
        for i, r in enumerate(best)
    )
    parts.append(f'<path class="axis" stroke-dasharray="3 3" d="{steps}"/>')
    named = [one for one in ranks if one in best or one.oracle or one.name in shown(pool)]
    places = _label_places(named, place_x, place_y, width=width, bottom=bottom)
    for rank in ranks:
        x, y, name = places.get(rank.name, (0.0, place_y(rank.error) + 4, ""))
        at_x, at_y = place_x(rank.cost), place_y(rank.error)
        far = bool(name) and abs(y - 4 - at_y) > 6
        leader = (
            f'<path class="rule" d="M{at_x:.1f} {at_y:.1f}L{x - 2:.1f} {y - 4:.1f}"/>'
            if far
            else ""
        )
        parts.append(
            f"<g><title>{html(rank.name)}: error {percent(rank.error)}, "
            f"{times(rank.cost)}</title>{leader}"
            + _mark(rank, at_x, at_y, first=rank in best, base=rank.name == pool.baseline)
            + (label(x, y, name, style="ink" if rank in best else "") if name else "")
            + "</g>"
        )
    key = "■ baseline   ● best at its cost   ○ beaten   ◇ oracle"
    parts.append(label(12, bottom + 54, key))
    return drawing(
        ident,
        title="Cost against error",
        description=f"Best at their cost: {listed([rank.name for rank in best])}.",
        size=(width, bottom + 62),
        parts=parts,
    )


def _mark(rank: Rank, x: float, y: float, *, first: bool, base: bool) -> str:
    if base:
        return f'<rect class="plain" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'
    if rank.oracle:
        return f'<path class="even" stroke-width="1.5" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z"/>'
    style = "good" if first else "even"
    return f'<circle class="{style}" stroke-width="1.5" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _label_places(
    ranks: Sequence[Rank], place_x: Scale, place_y: Scale, *, width: int, bottom: float
) -> dict[str, tuple[float, float, str]]:
    """Where each name goes: beside its mark, moved up or down until it is clear of the others."""
    taken: list[tuple[float, float, float]] = []
    out: dict[str, tuple[float, float, str]] = {}
    for rank in sorted(ranks, key=lambda rank: (rank.error, rank.cost)):
        name = shortened(rank.name, pixels=0.4 * width)
        wide = text_width(name)
        x = place_x(rank.cost) + 9
        if x + wide > width - 4:
            x = place_x(rank.cost) - 9 - wide
        y = place_y(rank.error) + 4
        offsets = sorted((s * n * _LINE / 3 for n in range(90) for s in (1, -1)), key=abs)
        free = [
            y + offset
            for offset in offsets
            if _TOP + 8 <= y + offset <= bottom - 2
            and not any(
                abs(y + offset - other_y) < _LINE and x < end and start < x + wide
                for start, end, other_y in taken
            )
        ]
        y = free[0] if free else y
        taken.append((x, x + wide, y))
        out[rank.name] = (x, y, name)
    return out
