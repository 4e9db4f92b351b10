"""Curves over the frames of a stream, with its domains behind them and what happened below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, floor, log10, radians, sin

from streamadapt.replay.report.drawing import (
    STYLES,
    Scale,
    drawing,
    label,
    shortened,
    text_width,
    ticks,
)
from streamadapt.replay.report.markup import Markup, html

_MAXIMUM_POINTS = 900
_LEFT, _RIGHT = 52, 12  # the same for all, so that their x axes line up
_TURN = 42.0  # degrees of band names that do not fit lying
_NAME = 110.0  # longest band name in pixels
_LINES_DOWN = 12  # more happenings than this are shown in their lanes only

GLYPHS = {"alarm": "▲", "rolled back": "◆", "reset": "●", "refused": "✕", "other": "|"}


@dataclass(frozen=True)
class Line:
    """One curve; a None in `y` is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: int


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a name."""

    name: str
    start: float
    stop: float


@dataclass(frozen=True)
class Happening:
    """Something at a place of the x axis; `sort` is a key of `GLYPHS`."""

    x: float
    sort: str
    words: str


@dataclass(frozen=True)
class Lane:
    """What happened to one policy."""

    name: str
    happenings: Sequence[Happening]


@dataclass(frozen=True)
class Chart:
    """Curves over a common x axis.

    Attributes:
        title: what is shown; also the accessible name.
        description: the message in words, for those who do not see the picture.
        lines: the curves.
        bands: shaded alternately.
        x_label: what the x axis counts.
        y_range: lowest and highest value; grown to round numbers.
        percent: whether y values are shares, to be written in per cent.
        lanes: drawn below, on the same x axis.
        level: a value to draw a line at, and what it is called.
    """

    title: str
    description: str
    lines: Sequence[Line]
    bands: Sequence[Band]
    x_label: str
    y_range: tuple[float, float]
    percent: bool
    lanes: Sequence[Lane] = ()
    level: tuple[float, str] | None = None

    def svg(self, ident: str, *, width: int, height: int, heading: bool = True) -> Markup:
        """The drawing, `width` pixels wide; `size_of` tells how high it became.

        Args:
            ident: unique in the document, for the accessible name.
            width: drawing width in pixels.
            height: height of the plot itself, without legend and axes, in pixels.
            heading: whether the title is drawn, too.
        """
        legend, below_legend = self._legend(width, top=38 if heading else 16)
        start, stop = self.bands[0].start, self.bands[-1].stop
        marks = ticks(*self.y_range)
        names, headroom = _band_names(self.bands, (width - _LEFT - _RIGHT) / ((stop - start) or 1))
        top = below_legend + headroom + 6
        bottom = top + height
        place_x = Scale(start, stop, _LEFT, width - _RIGHT)
        place_y = Scale(marks[0], marks[-1], bottom, top)
        parts = [label(12, 17, self.title, style="strong")] if heading else []
        parts.append(legend)
        parts += self._behind(names, place_x, top, height)
        for tick in marks:
            y = place_y(tick)
            parts.append(
                f'<line class="rule" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                + label(_LEFT - 6, y + 4, self._number(tick, marks), anchor="end")
            )
        for tick in ticks(start, stop, count=6 if width > 600 else 3):
            if start <= tick <= stop:
                at_end = place_x(tick) > width - _RIGHT - 16
                parts.append(
                    label(
                        place_x(tick),
                        bottom + 16,
                        f"{tick:,.0f}",
                        anchor="end" if at_end else "middle",
                    )
                )
        parts.append(
            label((_LEFT + width - _RIGHT) / 2, bottom + 33, self.x_label, anchor="middle")
        )
        lanes, below = self._lanes(place_x, top=bottom + 44, bottom=bottom, plot_top=top)
        parts += lanes
        if self.level is not None:
            y = place_y(self.level[0])
            parts.append(
                f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke-dasharray="1 3"/>' + label(_LEFT + 4, y - 4, self.level[1])
            )
        parts += [line_path(line, place_x, place_y) for line in self.lines]
        return drawing(
            ident, title=self.title, description=self.description, size=(width, below), parts=parts
        )

    def _behind(
        self, names: Sequence[tuple[str, bool]], place_x: Scale, top: float, height: float
    ) -> list[str]:
        parts = []
        for index, (band, (name, lying)) in enumerate(zip(self.bands, names, strict=True)):
            x, end = place_x(band.start), place_x(band.stop)
            parts.append(
                f'<rect class="{"back" if index % 2 else "band"}" x="{x:.1f}" y="{top:.0f}" '
                f'width="{end - x:.1f}" height="{height}"><title>{html(band.name)}</title></rect>'
            )
            middle = (x + end) / 2
            if name and lying:
                parts.append(label(middle, top - 6, name, anchor="middle"))
            elif name:
                parts.append(label(middle + 3, top - 5, name, anchor="end", turn=_TURN))
        return parts

    def _lanes(
        self, place_x: Scale, *, top: float, bottom: float, plot_top: float
    ) -> tuple[list[str], float]:
        """Glyphs by policy, and faint lines up into the plot while they are few."""
        if not self.lanes:
            return [], top - 4
        parts = []
        y = top
        used = {one.sort for lane in self.lanes for one in lane.happenings}
        loud = [
            one
            for lane in self.lanes
            for one in lane.happenings
            if one.sort not in ("other", "refused")
        ]
        if len(loud) <= _LINES_DOWN:
            parts += [
                f'<line class="when" x1="{place_x(one.x):.1f}" x2="{place_x(one.x):.1f}" '
                f'y1="{plot_top:.0f}" y2="{bottom:.0f}"/>'
                for one in loud
            ]
        for lane in self.lanes:
            y += 16
            parts.append(label(_LEFT, y, lane.name))
            y += 16
            parts.append(
                f'<line class="rule" x1="{_LEFT}" x2="{place_x.stop:.1f}" y1="{y - 4:.1f}" '
                f'y2="{y - 4:.1f}"/>'
            )
            parts += [
                f"<g><title>{html(one.words)}</title>"
                + label(place_x(one.x), y, GLYPHS[one.sort], anchor="middle", style="mark")
                + "</g>"
                for one in lane.happenings
            ]
        key = "   ".join(f"{glyph} {sort}" for sort, glyph in GLYPHS.items() if sort in used)
        parts.append(label(_LEFT, y + 20, key))
        return parts, y + 30

    def _legend(self, width: int, *, top: int) -> tuple[str, int]:
        parts: list[str] = []
        x, y = 12.0, top
        for line in self.lines:
            needed = 36 + text_width(line.name) + 16
            if x > 12 and x + needed > width:
                x, y = 12.0, y + 18
            parts.append(
                f'<path class="line line-{line.style % STYLES}" d="M{x:.1f} {y - 4}h28"/>'
                + label(x + 34, y, line.name)
            )
            x += needed
        return "".join(parts), y + 8

    def _number(self, tick: float, marks: Sequence[float]) -> str:
        if self.percent:
            return f"{100 * tick:.0f} %"
        step = marks[1] - marks[0]
        return f"{tick:,.{max(0, -floor(log10(step)))}f}"


def line_path(line: Line, place_x: Scale, place_y: Scale, *, style: str = "line") -> str:
    """A curve with its name, thinned where there are more points than pixels."""
    points = list(zip(line.x, line.y, strict=True))
    stride = ceil(len(points) / _MAXIMUM_POINTS)
    if stride > 1:
        points = [*points[:-1:stride], points[-1]]
    out: list[str] = []
    pen_down = False
    for x, y in points:
        if y is not None:
            out.append(f"{'L' if pen_down else 'M'}{place_x(x):.1f} {place_y(y):.1f}")
        pen_down = y is not None
    return (
        f'<path class="{style} line-{line.style % STYLES}" d="{"".join(out)}">'
        f"<title>{html(line.name)}</title></path>"
    )


def _band_names(bands: Sequence[Band], scale: float) -> tuple[list[tuple[str, bool]], float]:
    """What to write above each band, whether it lies, and how much room that takes in pixels."""
    widths = [(band.stop - band.start) * scale for band in bands]
    if all(text_width(b.name) + 8 < width for b, width in zip(bands, widths, strict=True)):
        return [(band.name, True) for band in bands], 20
    names = [shortened(band.name, pixels=_NAME) for band in bands]
    # Turned names need this much to stay clear of one another; with less, some are left out.
    apart = 16 / sin(radians(_TURN))
    step = ceil(apart * len(bands) / sum(widths))
    shown = [(name if i % step == 0 else "", False) for i, name in enumerate(names)]
    longest = max(text_width(name) for name, _ in shown)
    return shown, longest * sin(radians(_TURN)) + 12 * cos(radians(_TURN)) + 4
