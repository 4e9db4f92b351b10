"""What is drawn over the frames of a stream: error, diversity, distance, and what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np

from streamadapt.replay.report.drawing import STYLES
from streamadapt.replay.report.lines import Band, Chart, Happening, Lane, Line
from streamadapt.replay.report.markup import percent
from streamadapt.replay.report.pool import Pool
from streamadapt.replay.result import PolicySeries, ReplayEvent, ReplayResult
from streamadapt.replay.scores import rolling_accuracy

_QUIET = frozenset({"StreamAdmitted"})  # listed, but no news on a chart
_GLYPHS_IN_A_LANE = 60
_FEWEST_FRAMES = 32  # a share of fewer says little
_SORTS = (
    ("alarm", ("Drift", "Alarm", "Warning")),
    ("rolled back", ("RolledBack",)),
    ("reset", ("Reset",)),
    ("refused", ("Rejected", "Refused", "Dropped", "Skipped")),
)


def shown(pool: Pool) -> dict[str, int]:
    """The policies that curves are drawn of, with their line styles: all, or the best of many.

    Style 0, grey and dashed, is the baseline's.
    """
    others = [rank for rank in pool.ranks if rank.name != pool.baseline]
    if len(others) > STYLES - 1:
        best = sorted(others, key=lambda rank: (rank.error, rank.name))[: STYLES - 1]
        others = [rank for rank in others if rank in best]
    names = [pool.baseline, *(rank.name for rank in others)]
    return {name: style for style, name in enumerate(names)}


def error_chart(pool: Pool) -> Chart:
    """Error around each batch, of the first seed, with domains and events."""
    result = pool.first
    window = window_frames(result)
    lines = [
        Line(name, _middles(result), _rolling_error(result, result.policy(name), window), style)
        for name, style in shown(pool).items()
    ]
    values = [value for line in lines for value in line.y if value is not None]
    means = ", ".join(f"{name} {percent(pool.error(name))}" for name in shown(pool))
    return Chart(
        title="Error over the stream",
        description=f"Mean error: {means}. The table of errors by domain has the same in numbers.",
        lines=lines,
        bands=_bands(result),
        lanes=_lanes(result),
        x_label="frames seen",
        y_range=(0.0, min(1.0, max(values, default=1.0))),
        percent=True,
    )


def diversity_chart(pool: Pool) -> Chart | None:
    """Effective number of classes that each policy predicts; None where it was not measured."""
    result = pool.first
    lines = [
        Line(name, _middles(result), _known(result.policy(name).diversity), style)
        for name, style in shown(pool).items()
    ]
    values = [value for line in lines for value in line.y if value is not None]
    if not values:
        return None
    lowest = min(lines, key=lambda line: min((v for v in line.y if v is not None), default=1e9))
    low = min(value for value in lowest.y if value is not None)
    return Chart(
        title="Diversity of the predictions",
        description=f"Lowest: {low:.1f} classes, by {lowest.name}.",
        lines=lines,
        bands=_bands(result),
        x_label="frames seen",
        y_range=(0.0, max(values)),
        percent=False,
    )


def distance_chart(pool: Pool) -> Chart | None:
    """Distance of the statistics from the source's; None where no policy has any."""
    result = pool.first
    lines = [
        Line(name, _middles(result), _known(result.policy(name).distance), style)
        for name, style in shown(pool).items()
    ]
    lines = [line for line in lines if any(value is not None for value in line.y)]
    if not lines:
        return None
    highest = max(value for line in lines for value in line.y if value is not None)
    return Chart(
        title="Distance from the source statistics",
        description=f"Highest value {highest:.3g}, mean over the layers.",
        lines=lines,
        bands=_bands(result),
        x_label="frames seen",
        y_range=(0.0, highest or 1.0),
        percent=False,
    )


def window_frames(result: ReplayResult) -> int:
    """Frames that a point of the error curve pools: through the noise, yet not over a switch."""
    shortest = min(domain.frames for domain in result.domains)
    few = min(shortest, _FEWEST_FRAMES)
    return max(few, shortest // 6, sum(result.batch_frames) // 60, max(result.batch_frames))


def event_words(event: ReplayEvent) -> str:
    """An event as a reader has it: `rolled back: to good-3, reason entropy`."""
    fields = ", ".join(
        f"{key} {_short(value)}"
        for key, value in event.fields.items()
        if key != "step" and value not in (None, "", [], {})
    )
    kind = "".join(f" {c.lower()}" if c.isupper() else c for c in event.kind).strip()
    return f"{kind}: {fields}" if fields else kind


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def _rolling_error(result: ReplayResult, policy: PolicySeries, window: int) -> list[float | None]:
    """Error around each batch; None where no frame has a label."""
    edges = np.cumsum([0, *result.batch_frames])[:-1]
    labelled = np.add.reduceat(result.labelled.astype(np.int64), edges).tolist()
    correct = np.add.reduceat((policy.correct & result.labelled).astype(np.int64), edges).tolist()
    # Where domains lie in one another, they have no borders for a window to keep to.
    domains = result.frame_domains[edges].tolist() if _in_turn(result) else [0] * len(edges)
    values = rolling_accuracy(correct, labelled, domains, window_frames=window)
    return [1 - value if isfinite(value) else None for value in values]


def _known(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is not None and isfinite(value) else None for value in values]


def _in_turn(result: ReplayResult) -> bool:
    """Whether domains come one after the other."""
    return bool((np.diff(result.frame_domains) >= 0).all())


def _bands(result: ReplayResult) -> list[Band]:
    if not _in_turn(result):
        return [Band("all domains, in one another", 0, len(result.frame_domains))]
    return [Band(d.name, d.first_frame, d.first_frame + d.frames) for d in result.domains]


def _lanes(result: ReplayResult) -> list[Lane]:
    starts = np.cumsum([0, *result.batch_frames])
    lanes = []
    for series in result.policies:
        happenings = _thinned(
            [
                Happening(
                    float(starts[event.batch]),
                    _sort(event.kind),
                    f"batch {event.batch + 1}: {event_words(event)}",
                )
                for event in result.events
                if event.policy == series.name and event.kind not in _QUIET
            ],
            stretch=float(starts[-1]) / _GLYPHS_IN_A_LANE,
        )
        if happenings:
            lanes.append(Lane(series.name, happenings))
    return lanes


def _thinned(happenings: Sequence[Happening], *, stretch: float) -> list[Happening]:
    """One of each sort in a stretch of the stream: more could not be told apart."""
    groups: dict[tuple[int, str], list[Happening]] = {}
    for one in happenings:
        groups.setdefault((int(one.x / stretch), one.sort), []).append(one)
    return [
        first if not more else replace(first, words=f"{first.words}, and {len(more)} more")
        for first, *more in groups.values()
    ]


def _sort(kind: str) -> str:
    found = [sort for sort, words in _SORTS if any(word in kind for word in words)]
    return found[0] if found else "other"


def _middles(result: ReplayResult) -> list[float]:
    ends = np.cumsum(result.batch_frames)
    return [float(value) for value in ends - np.asarray(result.batch_frames) / 2]
