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

_NUMBERS = 148  # pixels for "−12.3 (−14.5 to −10.1)"
_NARROW = 600  # below this width words stand above their bar, not beside it


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
    narrow = width < _NARROW
    names = max((text_width(name) for name, _ in rows), default=0.0)
    left = 8 if narrow else min(names + 16, 0.32 * width)
    right = width - 8 if narrow else width - _NUMBERS - 16
    ends = [0.0, *(end for _, one in rows for end in (one.low, one.high))]
    marks = ticks(min(ends), max(ends), count=4 if narrow else 6)
    place = Scale(marks[0], marks[-1], left + 12, right - 12)
    row = 38 if narrow else 24
    bottom = 12 + row * len(rows)
    whole = all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in marks)
    parts = []
    for tick in marks:
        style = "axis" if abs(tick) < 1e-12 else "rule"
        words = points(tick).removesuffix(".0") if whole else points(tick)
        parts.append(
            f'<line class="{style}" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="8" '
            f'y2="{bottom}"/>' + label(place(tick), bottom + 16, words, anchor="middle")
        )
    for index, (name, one) in enumerate(rows):
        text = 12 + row * index + (14 if narrow else row / 2 + 4)
        y = 12 + row * index + (26 if narrow else row / 2)
        room = width - _NUMBERS - 8 if narrow else left - 8
        style = {"better": "good", "worse": "bad", "even": "plain"}[verdict(one)]
        parts.append(
            f"<g><title>{html(name)}: {html(interval_words(one))} points</title>"
            + label(4, text, shortened(name, pixels=room), style="ink")
            + f'<line class="{style}" stroke-width="2" x1="{place(one.low):.1f}" '
            f'x2="{place(one.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            + _glyph(style, place(one.estimate), y)
            + label(width - 4, text, interval_words(one), anchor="end")
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
