"""What all charts share: the frame of an SVG, colours, scales, round numbers, widths of text.

No library and no script. Colours are variables of style sheets, so one drawing serves light and
dark; every pair of curves or marks differs in more than colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log, log10

from streamadapt.replay.report.markup import Markup

# Style 0, grey and dashed, is the frozen model. Hues differ in lightness, too.
LINES_LIGHT = ("#5f6b7a", "#0b63c5", "#b84a00", "#0a7a55", "#7546c4", "#b32a6b", "#6f5b00")
LINES_DARK = ("#a3adb9", "#63b0ff", "#ff9a4d", "#45d19e", "#b79bff", "#ff7fb4", "#d9c24a")
DASHES = ("6 4", "", "2 3", "10 3 2 3", "12 4", "4 2", "1 4")
STYLES = len(DASHES)

# Against the frozen model, from far better over the same to far worse. Ink is readable on each.
SCALE_LIGHT = (
    "#62a8f2",
    "#94c5f7",
    "#bfdcfa",
    "#e1eefb",
    "#ffffff",
    "#fdebdc",
    "#fbd0ac",
    "#f7b07a",
    "#ee8f4b",
)
SCALE_DARK = (
    "#1f5a9c",
    "#1c4a7d",
    "#1a3b60",
    "#182b42",
    "#141a21",
    "#2f2318",
    "#4a2f18",
    "#683d19",
    "#8a4c17",
)
DEPTH_LIGHT = (
    "#eef3f8",
    "#d5e5f4",
    "#b3d0ec",
    "#86b4e0",
    "#5894d0",
    "#3273b8",
    "#185498",
    "#0b376b",
)
DEPTH_DARK = (
    "#1a222c",
    "#1c3148",
    "#1f4468",
    "#24598a",
    "#3272ac",
    "#5592c9",
    "#8ab7e0",
    "#cbe0f4",
)
INK_LIGHT = {
    "ink": "#1b2430",
    "soft": "#515d6c",
    "rule": "#dbe1e8",
    "band": "#eef2f7",
    "back": "#ffffff",
    "mark": "#b3261e",
    "good": "#0b63c5",
    "bad": "#b84a00",
}
INK_DARK = {
    "ink": "#e8edf3",
    "soft": "#a5b0bd",
    "rule": "#313b47",
    "band": "#1d252f",
    "back": "#141a21",
    "mark": "#ff8a80",
    "good": "#63b0ff",
    "bad": "#ff9a4d",
}

_CHARACTER = 7.2  # mean width in pixels of a letter at 12 px, in one of the wider system fonts


def drawing_css() -> str:
    """Style rules for everything of class `sa-chart`, to be put into the page or the drawing."""
    light = _variables(INK_LIGHT, LINES_LIGHT, SCALE_LIGHT, DEPTH_LIGHT)
    dark = _variables(INK_DARK, LINES_DARK, SCALE_DARK, DEPTH_DARK)
    lines = "".join(
        f".sa-chart .line-{index}{{stroke:var(--c{index});stroke-dasharray:{dash or 'none'}}}"
        for index, dash in enumerate(DASHES)
    )
    depths = "".join(
        f".sa-chart .depth-{index}{{stroke:var(--e{index})}}" for index in range(len(DEPTH_LIGHT))
    )
    return (
        f".sa-chart{{{light}}}@media (prefers-color-scheme:dark){{.sa-chart{{{dark}}}}}"
        ".sa-chart text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;"
        "fill:var(--soft)}"
        ".sa-chart .strong{fill:var(--ink);font-weight:600}.sa-chart .ink{fill:var(--ink)}"
        ".sa-chart .back{fill:var(--back)}.sa-chart .band{fill:var(--band)}"
        ".sa-chart .rule{stroke:var(--rule);stroke-width:1;fill:none}"
        ".sa-chart .axis{stroke:var(--soft);stroke-width:1;fill:none}"
        ".sa-chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:butt}"
        ".sa-chart .ghost{stroke-width:1.5}"
        ".sa-chart .when{stroke:var(--mark);stroke-width:1;stroke-dasharray:3 3;opacity:.7}"
        ".sa-chart .mark{fill:var(--mark);stroke:var(--mark)}"
        ".sa-chart .good{fill:var(--good);stroke:var(--good)}"
        ".sa-chart .bad{fill:var(--bad);stroke:var(--bad)}"
        ".sa-chart .even{fill:var(--back);stroke:var(--soft)}"
        ".sa-chart .plain{fill:var(--soft);stroke:var(--soft)}"
        ".sa-chart .hollow{fill:var(--back)}"
        f".sa-chart .cell{{fill:none}}{depths}{lines}"
    )


def _variables(ink: dict[str, str], *ramps: Sequence[str]) -> str:
    out = [f"--{name}:{colour}" for name, colour in ink.items()]
    for letter, ramp in zip("cde", ramps, strict=True):
        out += [f"--{letter}{index}:{colour}" for index, colour in enumerate(ramp)]
    return ";".join(out)


def drawing(
    ident: str, *, title: str, description: str, size: tuple[float, float], parts: Iterable[str]
) -> Markup:
    """An `<svg>` with an accessible name and a text that says what it shows.

    Args:
        ident: unique in the document.
        title: what is shown.
        description: the message, for those who do not see the picture.
        size: width and height in pixels.
        parts: what is drawn.
    """
    width, height = size
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sa-chart" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" '
        f'aria-labelledby="{ident}-title {ident}-text">'
        f'<title id="{ident}-title">{escape(title)}</title>'
        f'<desc id="{ident}-text">{escape(description)}</desc>'
        f'<rect class="back" width="{width:.0f}" height="{height:.0f}"/>{"".join(parts)}</svg>'
    )


def size_of(svg: str) -> tuple[int, int]:
    """Width and height in pixels of what `drawing` made."""
    _, _, width, height = svg.split('viewBox="', 1)[1].split('"', 1)[0].split()
    return int(width), int(height)


def label(
    x: float, y: float, words: str, *, anchor: str = "start", style: str = "", turn: float = 0
) -> str:
    """Text at a place; `turn` in degrees around it."""
    style = f' class="{style}"' if style else ""
    end = "" if anchor == "start" else f' text-anchor="{anchor}"'
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}"{end}{turned}>{escape(words)}</text>'


def text_width(words: str) -> float:
    """About how wide text is, in pixels; rather too much than too little."""
    return len(words) * _CHARACTER


def shortened(words: str, *, pixels: float) -> str:
    """Cut to fit, with a sign that it was.

    >>> shortened("a long name", pixels=50)
    'a lon…'
    """
    fits = max(int(pixels / _CHARACTER), 2)
    return words if len(words) <= fits else words[: fits - 1].rstrip() + "…"


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`.

    >>> ticks(0, 0.37)
    [0.0, 0.1, 0.2, 0.30000000000000004, 0.4]
    """
    if high <= low:
        high = low + 1
    rough = (high - low) / count
    power = 10.0 ** floor(log10(rough))
    step = power * min(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def ratio_ticks(low: float, high: float) -> list[float]:
    """Round numbers around `low` to `high`, for a logarithmic axis.

    >>> ratio_ticks(0.9, 7)
    [0.5, 1.0, 2.0, 5.0, 10.0]
    """
    numbers = [
        m * 10.0**e for e in range(floor(log10(low)) - 1, ceil(log10(high)) + 2) for m in (1, 2, 5)
    ]
    below = max(n for n in numbers if n <= low * (1 + 1e-9))
    above = min(n for n in numbers if n >= high * (1 - 1e-9))
    return [n for n in numbers if below <= n <= above]


@dataclass(frozen=True)
class Scale:
    """From values to pixels: `low` lies at `start`, `high` at `stop`; beyond them is cut off."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where `value` lies."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = log(value / self.low) / (log(self.high / self.low) or 1)
        else:
            share = (value - self.low) / ((self.high - self.low) or 1)
        return self.start + share * (self.stop - self.start)
