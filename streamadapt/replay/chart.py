"""Line charts as SVG text: no library, no script, light and dark, told apart without colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

# Grey and dashed is the baseline. Hues differ in lightness, too, and dashes tell them all apart.
_LIGHT = ("#6b7480", "#0b63c5", "#c2500a", "#0f7f5a", "#7546c4", "#b32a6b", "#7a6400")
_DARK = ("#a3adb9", "#63b0ff", "#ff9a4d", "#45d19e", "#b79bff", "#ff7fb4", "#d9c24a")
DASHES = ("6 4", "", "2 3", "10 3 2 3", "12 4", "4 2", "1 4")
STYLES = len(DASHES)

_CHARACTER = 7.4  # mean width in pixels at the font size below
_MAXIMUM_POINTS = 900


def chart_css() -> str:
    """Style rules for everything of class `sa-chart`, to be put into the page or the drawing."""
    light = "".join(f"--c{index}:{colour};" for index, colour in enumerate(_LIGHT))
    dark = "".join(f"--c{index}:{colour};" for index, colour in enumerate(_DARK))
    lines = "".join(
        f".sa-chart .line-{index}{{stroke:var(--c{index});stroke-dasharray:{dash or 'none'}}}"
        for index, dash in enumerate(DASHES)
    )
    return (
        f".sa-chart{{--ink:#1b2430;--soft:#586474;--rule:#dbe1e8;--band:#eef2f7;--back:#ffffff;"
        f"--mark:#b3261e;{light}}}"
        f"@media (prefers-color-scheme:dark){{.sa-chart{{--ink:#e8edf3;--soft:#a5b0bd;"
        f"--rule:#313b47;--band:#1d252f;--back:#141a21;--mark:#ff8a80;{dark}}}}}"
        ".sa-chart text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;"
        "fill:var(--soft)}"
        ".sa-chart .strong{fill:var(--ink);font-weight:600}"
        ".sa-chart .back{fill:var(--back)}.sa-chart .band{fill:var(--band)}"
        ".sa-chart .rule{stroke:var(--rule);stroke-width:1}"
        ".sa-chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:butt}"
        ".sa-chart .mark{stroke:var(--mark);stroke-width:1.5;stroke-dasharray:3 2}"
        f".sa-chart .mark-label{{fill:var(--mark);font-weight:600}}{lines}"
    )


@dataclass(frozen=True)
class Line:
    """One curve; a None in `y` is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: int


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a name; `short` is shown where the name does not fit."""

    name: str
    short: str
    start: float
    stop: float


@dataclass(frozen=True)
class Marker:
    """A place on the x axis where something happened."""

    x: float
    label: str
    text: str


@dataclass(frozen=True)
class Chart:
    """Curves over a common x axis.

    Attributes:
        title: what is shown; also the accessible name.
        description: the message in words, for those who do not see the picture.
        lines: the curves.
        bands: shaded alternately.
        markers: drawn over the bands.
        x_label: what the x axis counts.
        y_range: lowest and highest value; grown to round numbers.
        percent: whether y values are shares, to be written in per cent.
    """

    title: str
    description: str
    lines: Sequence[Line]
    bands: Sequence[Band]
    markers: Sequence[Marker]
    x_label: str
    y_range: tuple[float, float]
    percent: bool

    def svg(self, ident: str, *, width: int, height: int, heading: bool = True) -> str:
        """An `<svg>` element, `width` pixels wide; `height_of` tells how high it became.

        Args:
            ident: unique in the document, for the accessible name.
            width: drawing width in pixels.
            height: height of the plot itself, without legend and axes, in pixels.
            heading: whether the title is drawn, too.
        """
        legend, legend_height = self._legend(width, top=38 if heading else 16)
        ticks = _ticks(*self.y_range)
        labels = [self._number(tick, ticks) for tick in ticks]
        left = 52  # the same for all charts, so that their x axes line up
        top, right = legend_height + 28, 12
        bottom = top + height
        start, stop = self.bands[0].start, self.bands[-1].stop
        x_scale = (width - left - right) / ((stop - start) or 1)
        y_scale = height / (ticks[-1] - ticks[0])

        def place_x(value: float) -> float:
            return left + (value - start) * x_scale

        def place_y(value: float) -> float:
            return bottom - (min(max(value, ticks[0]), ticks[-1]) - ticks[0]) * y_scale

        spelled = all((b.stop - b.start) * x_scale > _width(b.name) + 8 for b in self.bands)
        key, full_height = ("", bottom + 40) if spelled else self._key(width, top=bottom + 54)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="sa-chart" role="img" '
            f'viewBox="0 0 {width} {full_height}" '
            f'aria-labelledby="{ident}-title {ident}-text">',
            f'<title id="{ident}-title">{escape(self.title)}</title>',
            f'<desc id="{ident}-text">{escape(self.description)}</desc>',
            f'<rect class="back" width="{width}" height="{full_height}"/>',
            f'<text class="strong" x="12" y="17">{escape(self.title)}</text>' if heading else "",
            legend,
        ]
        for index, band in enumerate(self.bands):
            x, band_width = place_x(band.start), (band.stop - band.start) * x_scale
            if index % 2 == 0:
                parts.append(
                    f'<rect class="band" x="{x:.1f}" y="{top - 20:.0f}" width="{band_width:.1f}" '
                    f'height="{height + 20}"/>'
                )
            parts.append(
                f'<text x="{x + band_width / 2:.1f}" y="{top - 6:.0f}" text-anchor="middle">'
                f"{escape(band.name if spelled else band.short)}</text>"
            )
        for tick, label in zip(ticks, labels, strict=True):
            y = place_y(tick)
            parts.append(
                f'<line class="rule" x1="{left:.1f}" x2="{width - right}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/><text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">'
                f"{label}</text>"
            )
        for tick in _ticks(start, stop, count=6 if width > 600 else 3):
            if start <= tick <= stop:
                anchor = "end" if place_x(tick) > width - right - 16 else "middle"
                parts.append(
                    f'<text x="{place_x(tick):.1f}" y="{bottom + 16:.0f}" '
                    f'text-anchor="{anchor}">{tick:,.0f}</text>'
                )
        parts.append(
            f'<text x="{(left + width - right) / 2:.1f}" y="{bottom + 33:.0f}" '
            f'text-anchor="middle">{escape(self.x_label)}</text>'
        )
        clear_of = -1.0
        for marker in self.markers:
            x = place_x(marker.x)
            parts.append(
                f'<g><title>{escape(marker.text)}</title><line class="mark" x1="{x:.1f}" '
                f'x2="{x:.1f}" y1="{top:.0f}" y2="{bottom:.0f}"/>'
            )
            if x > clear_of:
                parts.append(
                    f'<text class="mark-label" x="{x + 4:.1f}" y="{top + 12:.0f}">'
                    f"{escape(marker.label)}</text>"
                )
                clear_of = x + 6 + _width(marker.label)
            parts.append("</g>")
        for line in self.lines:
            path = _path([(place_x(x), None if y is None else place_y(y)) for x, y in _thin(line)])
            parts.append(
                f'<path class="line line-{line.style % STYLES}" d="{path}">'
                f"<title>{escape(line.name)}</title></path>"
            )
        return "".join(parts) + key + "</svg>"

    def _legend(self, width: int, *, top: int) -> tuple[str, int]:
        parts: list[str] = []
        x, y = 12.0, top
        for line in self.lines:
            needed = 36 + _width(line.name) + 16
            if x > 12 and x + needed > width:
                x, y = 12.0, y + 18
            parts.append(
                f'<path class="line line-{line.style % STYLES}" d="M{x:.1f} {y - 4}h28"/>'
                f'<text x="{x + 34:.1f}" y="{y}">{escape(line.name)}</text>'
            )
            x += needed
        return "".join(parts), y + 8

    def _key(self, width: int, *, top: int) -> tuple[str, int]:
        """What the short names of the bands stand for."""
        lines = [""]
        for band in self.bands:
            text = f"{band.short} {band.name}"
            longer = f"{lines[-1]} · {text}" if lines[-1] else text
            if _width(longer) > width - 24 and lines[-1]:
                lines.append(text)
            else:
                lines[-1] = longer
        parts = [
            f'<text x="12" y="{top + 17 * index}">{escape(line)}</text>'
            for index, line in enumerate(lines)
        ]
        return "".join(parts), top + 17 * (len(lines) - 1) + 10

    def _number(self, tick: float, ticks: Sequence[float]) -> str:
        if self.percent:
            return f"{100 * tick:.0f} %"
        step = ticks[1] - ticks[0]
        return f"{tick:,.{max(0, -floor(log10(step)))}f}"


def height_of(svg: str) -> int:
    """Height in pixels of what `Chart.svg` drew."""
    return int(svg.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()[1])


def _width(text: str) -> float:
    return len(text) * _CHARACTER


def _ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`."""
    if high <= low:
        high = low + 1
    rough = (high - low) / count
    power = 10.0 ** floor(log10(rough))
    step = power * min(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _thin(line: Line) -> list[tuple[float, float | None]]:
    points = list(zip(line.x, line.y, strict=True))
    stride = ceil(len(points) / _MAXIMUM_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    out: list[str] = []
    pen_down = False
    for x, y in points:
        if y is not None:
            out.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = y is not None
    return "".join(out)
