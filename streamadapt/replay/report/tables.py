"""The tables of the report. The one of errors is also its heat map: shades behind the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from streamadapt.replay.report.drawing import SCALE_LIGHT
from streamadapt.replay.report.forest import interval_words, verdict
from streamadapt.replay.report.markup import (
    NOTHING,
    Markup,
    counted,
    join,
    percent,
    points,
    short,
    tag,
    times,
)
from streamadapt.replay.report.pool import Pool, Rank
from streamadapt.replay.result import PolicySeries, ReplayResult

# Points of error against the baseline at which the shade changes, to either side.
_STEPS = (0.01, 0.05, 0.10, 0.20)
_SIGNS = {"better": "▼ better", "worse": "▲ worse", "even": "no clear difference"}


def scrolled(table: Markup, name: str) -> Markup:
    """A table that scrolls in its own box, by keyboard as well."""
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=name)


def table(head: Sequence[object], rows: Sequence[Markup], caption: str) -> Markup:
    """A table of rows made by `row`."""
    cells = join(tag("th", one, scope="col") for one in head)
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", cells)),
        tag("tbody", join(rows)),
    )
    return scrolled(made, caption)


def row(first: object, cells: Sequence[object], *, style: str | None = None) -> Markup:
    """A row with a heading; cells that are not `<td>` yet become so."""
    body = join(
        one if isinstance(one, Markup) and one.startswith("<td") else tag("td", one)
        for one in cells
    )
    return tag("tr", tag("th", first, scope="row"), body, class_=style)


def policy_table(pool: Pool) -> Markup:
    """All policies, best first, with difference, calibration and cost."""
    late = any(rank.too_late for rank in pool.ranks)
    head = ["policy", "error", f"points against {pool.baseline}, 95 % interval", "", "ECE"]
    head += ["median latency", "ms p50", "ms p99", *(["too late"] if late else [])]
    rows = [
        row(
            _named(rank),
            [
                tag("strong", percent(rank.error)),
                NOTHING if rank.gain is None else interval_words(rank.gain),
                "baseline" if rank.gain is None else _SIGNS[verdict(rank.gain)],
                percent(rank.ece),
                times(rank.cost),
                _milliseconds(rank.p50),
                _milliseconds(rank.p99),
                *([percent(rank.too_late)] if late else []),
            ],
        )
        for rank in sorted(pool.ranks, key=lambda rank: (rank.error, rank.name))
    ]
    return table(head, rows, "Policies, lowest error first")


def error_table(pool: Pool) -> Markup:
    """Error by domain and policy; visits of a domain are one row."""
    rows = [
        row(_domain(pool, name), [_shaded(pool, rank, name) for rank in pool.ranks])
        for name in pool.domains
    ]
    rows.append(row("mean", [_shaded(pool, rank, None) for rank in pool.ranks], style="total"))
    return table(["domain", *map(_named, pool.ranks)], rows, "Error by domain and policy")


def visit_table(pool: Pool) -> Markup | None:
    """Error by visit, over all domains of it; None where no domain is visited twice."""
    if pool.visits < 2:
        return None
    rows = []
    for visit in range(pool.visits):
        cells = []
        for rank in pool.ranks:
            errors = [
                error
                for result in pool.results
                for error, span in zip(result.error(rank.name), result.domains, strict=True)
                if span.visit == visit and isfinite(error)
            ]
            cells.append(percent(float(np.mean(errors)) if errors else None))
        rows.append(row(f"visit {visit + 1}", cells))
    return table(["", *map(_named, pool.ranks)], rows, "Error by visit")


def compare_table(pool: Pool, policy: str, against: str) -> Markup:
    """Two policies, domain by domain, with the interval of their difference."""
    rows = []
    for name in [*pool.domains, None]:
        difference = pool.interval(policy, against, name)
        rows.append(
            row(
                name or "mean",
                [
                    percent(pool.error(policy, name)),
                    percent(pool.error(against, name)),
                    interval_words(difference),
                    _SIGNS[verdict(difference)] if isfinite(difference.estimate) else NOTHING,
                ],
                style=None if name else "total",
            )
        )
    head = ["domain", policy, against, "points of difference, 95 % interval", ""]
    return table(head, rows, f"{policy} against {against}")


def layer_table(result: ReplayResult, series: PolicySeries) -> Markup:
    """Mean distance of each layer in each domain; or over all, where domains lie in one another."""
    batch_domain = result.frame_domains[np.cumsum([0, *result.batch_frames])[:-1]]
    in_turn = bool((np.diff(result.frame_domains) >= 0).all())
    at = batch_domain[np.asarray(series.layer_batches, dtype=np.int64)]
    names = list(dict.fromkeys(d.name for d in result.domains)) if in_turn else ["all domains"]
    member = {
        name: np.isin(at, [i for i, d in enumerate(result.domains) if d.name == name])
        if in_turn
        else np.ones(len(at), dtype=bool)
        for name in names
    }
    rows = []
    for layer, values in series.layer_distance.items():
        known = np.asarray(values, dtype=np.float64)
        cells = [known[inside & np.isfinite(known)] for inside in member.values()]
        rows.append(row(layer, [short(float(c.mean())) if c.size else NOTHING for c in cells]))
    return table(["layer", *names], rows, f"Mean distance by layer: {series.name}")


def diversity_table(pool: Pool) -> Markup:
    """Lowest and mean diversity of every policy, over all seeds."""
    rows = []
    for rank in pool.ranks:
        values = np.concatenate([np.asarray(s.diversity) for s in pool.series(rank.name)])
        values = values[np.isfinite(values)]
        cells = [short(float(values.mean())), short(float(values.min()))] if values.size else []
        rows.append(row(_named(rank), cells or [NOTHING, NOTHING]))
    return table(["policy", "mean", "lowest"], rows, "Effective number of classes predicted")


def reliability_table(pool: Pool, names: Sequence[str]) -> Markup:
    """The bins behind the reliability diagrams."""
    rows = [
        row(
            name,
            [f"{low / count:.2f} to {(low + 1) / count:.2f}", f"{n:,}", percent(c), percent(a)],
        )
        for name in names
        for bins in [pool.reliability(name)]
        for count in [len(bins.frames)]
        for low, (n, c, a) in enumerate(
            zip(bins.frames, bins.confidence, bins.accuracy, strict=True)
        )
        if n
    ]
    return table(
        ["policy", "confidence from", "frames", "mean confidence", "accuracy"],
        rows,
        "Confidence and accuracy by bin",
    )


def _named(rank: Rank) -> Markup:
    return join([rank.name, Markup("<small>oracle</small>") if rank.oracle else Markup()])


def _domain(pool: Pool, name: str) -> Markup:
    spans = [span for span in pool.first.domains if span.name == name]
    frames = sum(span.frames for span in spans)
    first = spans[0]
    words = [counted(frames, "frame")]
    if len(spans) > 1:
        words.insert(0, counted(len(spans), "visit"))
    if first.severity:
        levels = "–".join(str(level) for level in dict.fromkeys(first.severity))
        words.insert(0, f"{first.corruption} {levels}")
    return join([name, tag("small", ", ".join(words))])


def _shaded(pool: Pool, rank: Rank, domain: str | None) -> Markup:
    error = pool.error(rank.name, domain)
    difference = error - pool.error(pool.baseline, domain)
    rivals = [pool.error(one.name, domain) for one in pool.ranks if not one.oracle]
    best = not rank.oracle and error == min(rivals)
    text = tag("strong", percent(error)) if best else percent(error)
    title = None if rank.name == pool.baseline else f"{points(difference)} points"
    return tag("td", text, class_=f"shade-{_shade(difference)}", title=title)


def _shade(difference: float) -> int:
    """Place in the scale: the middle one is the same as the baseline."""
    middle = len(SCALE_LIGHT) // 2
    if not isfinite(difference):
        return middle
    far = sum(abs(difference) >= step for step in _STEPS)
    return middle + far if difference > 0 else middle - far


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f}" if isfinite(seconds) else NOTHING
