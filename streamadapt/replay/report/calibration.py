"""Confidence beside accuracy, a small panel a policy: all alike, so that they compare."""

from __future__ import annotations

from collections.abc import Sequence

from streamadapt.replay.report.drawing import Scale, drawing, label, shortened
from streamadapt.replay.report.markup import Markup, html, percent
from streamadapt.replay.report.pool import Pool
from streamadapt.replay.scores import Reliability

_GAP, _HEAD, _FOOT, _LEFT = 14, 36, 18, 34


def reliability_panels(
    ident: str, pool: Pool, names: Sequence[str], *, width: int, columns: int
) -> Markup | None:
    """Reliability diagrams of `names`; None where no confidence is known.

    Args:
        ident: unique in the document.
        pool: the results.
        names: policies to draw, one panel each.
        width: of the whole drawing in pixels.
        columns: panels side by side.
    """
    bins = {name: pool.reliability(name) for name in names}
    if not any(sum(one.frames) for one in bins.values()):
        return None
    side = (width - _LEFT - _GAP * columns) / columns
    row = _HEAD + side + _FOOT
    rows = -(-len(names) // columns)
    parts = []
    for index, (name, one) in enumerate(bins.items()):
        x = _LEFT + (index % columns) * (side + _GAP)
        y = _HEAD + (index // columns) * row
        parts.append(_panel(pool, name, one, x=x, y=y, side=side, numbered=index % columns == 0))
    bottom = rows * row + 4
    worst = max(names, key=lambda name: pool.rank(name).ece)
    return drawing(
        ident,
        title="Confidence beside accuracy",
        description="Expected calibration error: "
        + ", ".join(f"{name} {percent(pool.rank(name).ece)}" for name in names)
        + f". Worst: {worst}.",
        size=(width, bottom),
        parts=parts,
    )


def _panel(
    pool: Pool, name: str, bins: Reliability, *, x: float, y: float, side: float, numbered: bool
) -> str:
    place_x = Scale(0, 1, x, x + side)
    place_y = Scale(0, 1, y + side, y)
    known = [
        (confidence, accuracy, frames)
        for confidence, accuracy, frames in zip(
            bins.confidence, bins.accuracy, bins.frames, strict=True
        )
        if frames
    ]
    total = sum(bins.frames) or 1
    curve = "".join(
        f"{'L' if i else 'M'}{place_x(c):.1f} {place_y(a):.1f}" for i, (c, a, _) in enumerate(known)
    )
    dots = "".join(
        # Area by frames: a bin of three frames says little.
        f'<circle class="good" cx="{place_x(c):.1f}" cy="{place_y(a):.1f}" '
        f'r="{1.2 + 7 * (n / total) ** 0.5:.1f}"/>'
        for c, a, n in known
    )
    numbers = (
        "".join(label(x - 5, place_y(v) + 4, f"{100 * v:.0f}", anchor="end") for v in (0, 0.5, 1))
        if numbered
        else ""
    )
    ece = f"ECE {percent(pool.rank(name).ece)}"
    return (
        f"<g><title>{html(name)}: {html(ece)}</title>"
        + label(x, y - 20, shortened(name, pixels=side), style="strong")
        + label(x, y - 6, ece)
        + f'<rect class="band" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
        + f'<path class="axis" stroke-dasharray="3 3" '
        f'd="M{x:.1f} {y + side:.1f}l{side:.1f} {-side:.1f}"/>'
        + f'<path class="line" stroke="var(--good)" d="{curve}"/>{dots}{numbers}'
        + label(x, y + side + 14, "0")
        + label(x + side, y + side + 14, "100 %", anchor="end")
        + "</g>"
    )
