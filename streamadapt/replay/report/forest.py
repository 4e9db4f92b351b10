"""Differences with their intervals, one below the other, around a line at zero."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from streamadapt.replay.bootstrap import Interval
from streamadapt.replay.report.drawing import (
    Scale,
    drawing,
    label,
    shortened,
    text_width,
    ticks,
)
from streamadapt.replay.report.markup import Markup, html, points

_ROW = 24
_NUMBERS = 148  # pixels for "−12.3 (−14.5 to −10.1)"


def verdict(interval: Interval) -> str:
    """`better`, `worse` or `even`: whether the interval lies on one side of zero."""
    if interval.high < 0:
        return "better"
    return "worse" if interval.low > 0 else "even"


def interval_words(interval: Interval) -> str:
    """An estimate in points and what surrounds it.

    >>> interval_words(Interval(-0.05, -0.031, 0.0))
    '−3.1 (−5.0 to 0.0)'
    """
    if not isfinite(interval.estimate):
        return points(None)
    return f"{points(interval.estimate)} ({points(interval.low)} to {points(interval.high)})"


def forest(
    ident: str, rows: Sequence[tuple[str, Interval]], *, title: str, description: str, width: int
) -> Markup:
    """The drawing; rows without a number are left out.

    Args:
        ident: unique in the document.
        rows: what differs, and by how much, in shares of 1; below zero is better.
        title: accessible name.
        description: the message in words.
        width: in pixels.
    """
    rows = [row for row in rows if isfinite(row[1].estimate)]
    names = max((text_width(name) for name, _ in rows), default=0.0)
    left = min(names + 16, 0.32 * width)
    ends = [0.0, *(end for _, one in rows for end in (one.low, one.high))]
    marks = ticks(min(ends), max(ends), count=5 if width > 600 else 3)
    place = Scale(marks[0], marks[-1], left + 8, width - _NUMBERS - 16)
    bottom = 12 + _ROW * len(rows)
    parts = [
        f'<line class="{"axis" if abs(tick) < 1e-12 else "rule"}" x1="{place(tick):.1f}" '
        f'x2="{place(tick):.1f}" y1="8" y2="{bottom}"/>'
        + label(place(tick), bottom + 16, points(tick), anchor="middle")
        for tick in marks
    ]
    for index, (name, one) in enumerate(rows):
        y = 12 + _ROW * (index + 0.5)
        style = {"better": "good", "worse": "bad", "even": "plain"}[verdict(one)]
        parts.append(
            f"<g><title>{html(name)}: {html(interval_words(one))} points</title>"
            + label(4, y + 4, shortened(name, pixels=left - 8), style="ink")
            + f'<line class="{style}" stroke-width="2" x1="{place(one.low):.1f}" '
            f'x2="{place(one.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            + _glyph(style, place(one.estimate), y)
            + label(width - 4, y + 4, interval_words(one), anchor="end")
            + "</g>"
        )
    parts.append(
        label(
            (place.start + place.stop) / 2,
            bottom + 33,
            "points of error: ◀ better · worse ▶",
            anchor="middle",
        )
    )
    return drawing(
        ident, title=title, description=description, size=(width, bottom + 42), parts=parts
    )


def _glyph(style: str, x: float, y: float) -> str:
    """Told apart by shape, too: down is better, up is worse, a ring is neither."""
    if style == "plain":
        return f'<circle class="even" stroke-width="1.5" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    up = 1 if style == "bad" else -1
    return f'<path class="{style}" d="M{x - 5:.1f} {y + 4 * up:.1f}h10l-5 {-9 * up}z"/>'
