"""Text that becomes HTML, escaped unless it is markup; and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

NO_BREAK = "\N{NO-BREAK SPACE}"
NOTHING = "–"


class Markup(str):
    """A string that is HTML or SVG already."""

    __slots__ = ()


def html(value: object) -> Markup:
    """Escaped, unless it is markup.

    >>> html("a < b"), html(Markup("<b>"))
    ('a &lt; b', '<b>')
    """
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; an attribute loses a trailing `_`, and its `_` become `-`. None leaves it out.

    >>> tag("td", "a < b", class_="total", aria_hidden=None)
    '<td class="total">a &lt; b</td>'
    """
    inside = "".join(html(part) for part in content)
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{words}>{inside}</{name}>")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Parts, each escaped unless it is markup, after one another."""
    return Markup(separator.join(html(part) for part in parts))


def known(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)


def percent(share: float | None, *, digits: int = 1) -> str:
    """A share as per cent.

    >>> percent(0.1234).replace(NO_BREAK, " ")
    '12.3 %'
    """
    if share is None or not math.isfinite(share):
        return NOTHING
    return f"{100 * share:.{digits}f}{NO_BREAK}%"


def points(share: float | None) -> str:
    """A difference of shares in points, with its sign.

    >>> points(-0.0312), points(0.0)
    ('−3.1', '0.0')
    """
    if share is None or not math.isfinite(share):
        return NOTHING
    text = f"{100 * share:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def times(ratio: float | None) -> str:
    """A ratio.

    >>> times(1.234), times(23.4)
    ('1.23 ×', '23 ×')
    """
    if ratio is None or not math.isfinite(ratio):
        return NOTHING
    return f"{ratio:.2f} ×" if ratio < 10 else f"{ratio:.0f} ×"


def short(value: float | None) -> str:
    """Three digits that count.

    >>> short(0.012345), short(1234.5)
    ('0.0123', '1,234')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A count and its noun.

    >>> counted(1, "seed"), counted(1200, "frame")
    ('1 seed', '1,200 frames')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
