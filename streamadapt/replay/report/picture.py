"""A replay as one picture: error over the stream, and the distance from source below it."""

from __future__ import annotations

from streamadapt.replay.report.drawing import drawing_css, size_of
from streamadapt.replay.report.over_time import distance_chart, error_chart
from streamadapt.replay.report.pool import Pool
from streamadapt.replay.result import ReplayResult

_WIDTH = 900


def render_picture(result: ReplayResult) -> str:
    """A stand-alone SVG, light or dark as the reader has it; the same result gives the same bytes.

    Args:
        result: what `streamadapt.replay.run` returned.
    """
    pooled = Pool([result])
    charts = [error_chart(pooled).svg("error", width=_WIDTH, height=240)]
    distance = distance_chart(pooled)
    if distance is not None:
        charts.append(distance.svg("distance", width=_WIDTH, height=110))
    parts: list[str] = []
    top = 0
    for chart in charts:
        _, height = size_of(chart)
        parts.append(chart.replace("<svg", f'<svg y="{top}" width="{_WIDTH}" height="{height}"', 1))
        top += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" '
        f'viewBox="0 0 {_WIDTH} {top}"><style>{drawing_css()}</style>{"".join(parts)}</svg>\n'
    )
