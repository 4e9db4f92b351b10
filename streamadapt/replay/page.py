"""A replay as one HTML page, and as one picture: nothing is fetched, everything is inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite

import numpy as np

from streamadapt.replay.chart import (
    STYLES,
    Band,
    Chart,
    Line,
    Marker,
    chart_css,
    height_of,
)
from streamadapt.replay.result import PolicySeries, ReplayEvent, ReplayResult
from streamadapt.replay.scores import rolling_accuracy

_WIDE, _NARROW = 900, 400
_EVENTS_SHOWN = 60
_MARKERS_SHOWN = 12
_NOT_MARKED = frozenset({"StreamAdmitted"})  # listed, but no news on a chart


def render_page(
    result: ReplayResult, *, title: str, remarks: Mapping[str, Sequence[str]] | None = None
) -> str:
    """A self-contained HTML page: accuracy and distance over the stream, errors, events, set-up.

    Args:
        result: what `streamadapt.replay.run` returned.
        title: heading of the page.
        remarks: further sections by heading, each a list of sentences, shown before the events.
    """
    accuracy = _accuracy(result)
    sections = [
        f"<header><h1>{escape(title)}</h1><p class=lead>{escape(_summary(result))}</p></header>",
        _section(accuracy.title, _both_widths(accuracy, "accuracy", 260), _window_note(result)),
    ]
    distance = _distance(result)
    if distance is not None:
        sections.append(
            _section(
                distance.title,
                _both_widths(distance, "distance", 170),
                "How far the statistics in use have moved from those the model was trained with. "
                "A world that changed moves them; that alone does not say that the model is worse.",
            )
        )
    sections.append(_section("Error by domain", _error_table(result), _error_note(result)))
    for heading, sentences in (remarks or {}).items():
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
        sections.append(_section(heading, f"<ul class=remarks>{items}</ul>"))
    sections.append(_section("Events", _event_list(result)))
    sections.append(_section("Set-up", _setup(result)))
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{chart_css()}{_PAGE_CSS}</style>\n</head>\n"
        f'<body class="sa-chart">\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def render_chart_svg(result: ReplayResult) -> str:
    """Accuracy over the stream, with the distance from source below it, as a standalone SVG."""
    charts = [_accuracy(result).svg("accuracy", width=_WIDE, height=240)]
    distance = _distance(result)
    if distance is not None:
        charts.append(distance.svg("distance", width=_WIDE, height=120))
    parts: list[str] = []
    top = 0
    for chart in charts:
        height = height_of(chart)
        place = f'<svg y="{top}" width="{_WIDE}" height="{height}"'
        parts.append(chart.replace("<svg", place, 1))
        top += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDE}" height="{top}" '
        f'viewBox="0 0 {_WIDE} {top}"><style>{chart_css()}</style>{"".join(parts)}</svg>\n'
    )


def _summary(result: ReplayResult) -> str:
    parts = [f"{p.name} {_percent(result.mean_error(p.name))}" for p in result.policies]
    return (
        f"{sum(result.batch_frames):,} frames in {len(result.domains)} domains. "
        f"Mean error: {', '.join(parts)}."
    )


def _accuracy(result: ReplayResult) -> Chart:
    window = _window_frames(result)
    x = _batch_middles(result)
    lines = [
        Line(
            policy.name,
            x,
            _rolling(result, policy, window),
            style,
        )
        for policy, style in zip(result.policies, _styles(result.policies), strict=True)
    ]
    shown = [value for line in lines for value in line.y if value is not None]
    low = max(0.0, min(shown, default=0.0) - 0.05)
    return Chart(
        title="Accuracy over the stream",
        description=_summary(result) + " The table below gives the error in each domain.",
        lines=lines,
        bands=_bands(result),
        markers=_markers(result),
        x_label="frames seen",
        y_range=(low, 1.0),
        percent=True,
    )


def _rolling(result: ReplayResult, policy: PolicySeries, window: int) -> list[float | None]:
    """Accuracy around each batch; None where no frame has a label."""
    edges = np.cumsum([0, *result.batch_frames])[:-1]
    labelled = np.add.reduceat(result.labelled.astype(np.int64), edges).tolist()
    correct = np.add.reduceat((policy.correct & result.labelled).astype(np.int64), edges).tolist()
    # Where domains lie in one another, they have no borders for a window to keep to.
    domains = result.frame_domains[edges].tolist() if _in_turn(result) else [0] * len(edges)
    values = rolling_accuracy(correct, labelled, domains, window_frames=window)
    return [value if isfinite(value) else None for value in values]


def _in_turn(result: ReplayResult) -> bool:
    """Whether domains come one after the other."""
    return bool((np.diff(result.frame_domains) >= 0).all())


def _distance(result: ReplayResult) -> Chart | None:
    x = _batch_middles(result)
    lines = [
        Line(policy.name, x, list(policy.distance), style)
        for policy, style in zip(result.policies, _styles(result.policies), strict=True)
        if any(value is not None for value in policy.distance)
    ]
    if not lines:
        return None
    highest = max(value for line in lines for value in line.y if value is not None)
    return Chart(
        title="Distance from the source statistics",
        description=f"Highest value {highest:.3g}.",
        lines=lines,
        bands=_bands(result),
        markers=_markers(result),
        x_label="frames seen",
        y_range=(0.0, highest or 1.0),
        percent=False,
    )


def _styles(policies: Sequence[PolicySeries]) -> list[int]:
    """Style 0, grey and dashed, for the one that does not adapt; the others in their order."""
    styles: list[int] = []
    following = 1
    for policy in policies:
        plain = not policy.oracle and all(value is None for value in policy.distance)
        if plain and 0 not in styles:
            styles.append(0)
        else:
            styles.append(following)
            following = following % (STYLES - 1) + 1
    return styles


def _bands(result: ReplayResult) -> list[Band]:
    if not _in_turn(result):
        return [Band("all domains, in one another", "", 0, len(result.frame_domains))]
    return [
        Band(d.name, str(number), d.first_frame, d.first_frame + d.frames)
        for number, d in enumerate(result.domains, start=1)
    ]


def _markers(result: ReplayResult) -> list[Marker]:
    starts = [0]
    for frames in result.batch_frames:
        starts.append(starts[-1] + frames)
    return [
        Marker(starts[event.batch], str(number), f"{number}. {event.policy}: {_words(event)}")
        for number, event in enumerate(result.events, start=1)
        if event.kind not in _NOT_MARKED
    ][:_MARKERS_SHOWN]


def _batch_middles(result: ReplayResult) -> list[float]:
    middles: list[float] = []
    seen = 0
    for frames in result.batch_frames:
        middles.append(seen + frames / 2)
        seen += frames
    return middles


def _window_frames(result: ReplayResult) -> int:
    # Wide enough to read through the noise, narrow enough to see a domain settle.
    return max(min(domain.frames for domain in result.domains) // 6, sum(result.batch_frames) // 60)


def _window_note(result: ReplayResult) -> str:
    return (
        f"Each point pools about {max(_window_frames(result), max(result.batch_frames))} frames "
        "around it, of the same domain only. Shaded bands are the domains."
    )


def _error_table(result: ReplayResult) -> str:
    errors = {policy.name: result.error(policy.name) for policy in result.policies}
    rivals = [policy.name for policy in result.policies if not policy.oracle]
    head = "".join(
        f"<th scope=col>{escape(p.name)}{' (oracle)' if p.oracle else ''}</th>"
        for p in result.policies
    )
    rows: list[str] = []
    for index, domain in enumerate(result.domains):
        best = min((errors[name][index] for name in rivals), default=-1.0)
        levels = "–".join(str(level) for level in domain.severity)
        what = f"{domain.corruption} {levels}, " if levels else ""
        rows.append(
            f"<tr><th scope=row>{index + 1}. {escape(domain.name)}"
            f"<small>{escape(what)}{domain.frames:,} frames</small></th>"
            + "".join(_cell(errors[p.name][index], best, p.oracle) for p in result.policies)
            + "</tr>"
        )
    means = {policy.name: result.mean_error(policy.name) for policy in result.policies}
    best = min((means[name] for name in rivals), default=-1.0)
    rows.append(
        "<tr class=total><th scope=row>mean over domains</th>"
        + "".join(_cell(means[p.name], best, p.oracle) for p in result.policies)
        + "</tr>"
    )
    for label, q in (("p50", 0.5), ("p99", 0.99)):
        rows.append(
            f"<tr class=time><th scope=row>milliseconds a batch, {label}</th>"
            + "".join(
                f"<td>{1000 * result.latency_seconds(p.name, q):.2f}</td>" for p in result.policies
            )
            + "</tr>"
        )
    return (
        "<div class=scroll tabindex=0 role=region aria-label='Error by domain'><table>"
        f"<thead><tr><th scope=col>domain</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: float, best: float, oracle: bool) -> str:
    text = _percent(value)
    if value == best and not oracle:
        text = f"<strong>{text}</strong>"
    return f"<td>{text}</td>"


def _error_note(result: ReplayResult) -> str:
    note = "Bold: the lowest error of the row."
    if any(policy.oracle for policy in result.policies):
        note += " An oracle saw the whole domain before answering: a bound, not a rival."
    return note


def _event_list(result: ReplayResult) -> str:
    if not result.events:
        return "<p>None. Nothing was rejected, rolled back or refused.</p>"
    items = "".join(
        f"<li><span class=when>batch {event.batch + 1}</span> <b>{escape(event.policy)}</b> "
        f"{escape(_words(event))}</li>"
        for event in result.events[:_EVENTS_SHOWN]
    )
    left = len(result.events) - _EVENTS_SHOWN
    rest = f"<p>And {left:,} more, in the JSON.</p>" if left > 0 else ""
    return f"<ol class=events>{items}</ol>{rest}"


def _words(event: ReplayEvent) -> str:
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


def _setup(result: ReplayResult) -> str:
    scenario, data = result.scenario, result.data
    order = str(scenario.get("order", ""))
    if order == "dirichlet":
        order += f", alpha {scenario.get('dirichlet_alpha')}"
    runs = [domain.mean_run_length for domain in result.domains]
    facts = {
        "scenario": result.name,
        "configuration": result.configuration_hash,
        "seed": scenario.get("seed"),
        "batch size": scenario.get("batch_size"),
        "order": f"{order} (runs of one class: {sum(runs) / len(runs):.1f} frames on average)",
        "model": f"{scenario.get('model') or result.model.get('class')} "
        f"(weights {str(result.model.get('sha256', ''))[:12]})",
        "data": f"{scenario.get('data') or 'given by the caller'}, {data.get('samples')} images of "
        f"{data.get('height')} × {data.get('width')} (sha256 {str(data.get('sha256', ''))[:12]})",
        "versions": ", ".join(f"{name} {value}" for name, value in result.versions.items()),
        "wall time": f"{result.wall_seconds:.1f} s",
    }
    facts |= {f"policy {policy.name}": policy.description for policy in result.policies}
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    return f"<dl>{rows}</dl>"


def _section(heading: str, body: str, note: str = "") -> str:
    note = f"<p class=note>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(heading)}</h2>{body}{note}</section>"


def _both_widths(chart: Chart, ident: str, height: int) -> str:
    # Text in a scaled drawing shrinks with it, so a phone gets a drawing of its own.
    wide = chart.svg(f"{ident}-wide", width=_WIDE, height=height, heading=False)
    narrow = chart.svg(f"{ident}-narrow", width=_NARROW, height=height, heading=False)
    return f"<figure class=wide>{wide}</figure><figure class=narrow>{narrow}</figure>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


_PAGE_CSS = """
body{margin:0;background:var(--band);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:980px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 4px}
h2{font-size:1.05rem;margin:0 0 12px}
.lead{margin:0 0 20px;color:var(--soft);font-size:1.05rem}
section{background:var(--back);border:1px solid var(--rule);border-radius:10px;
padding:18px 20px;margin:0 0 16px}
figure{margin:0}figure svg{display:block;width:100%;height:auto}
.narrow{display:none}
.note{color:var(--soft);font-size:.875rem;margin:10px 0 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
thead th{color:var(--soft);font-size:.875rem;font-weight:600;vertical-align:bottom}
th:first-child{text-align:left;position:sticky;left:0;background:var(--back)}
tbody th{font-weight:500}
th small{display:block;color:var(--soft);font-weight:400;font-size:.8rem}
.total th,.total td{border-top:2px solid var(--rule)}
.time th,.time td{color:var(--soft);font-size:.875rem}
tbody tr:last-child>*{border-bottom:0}
.remarks{margin:0;padding-left:1.2em}.remarks li{margin:4px 0}
.events{margin:0;padding-left:1.6em;overflow-wrap:anywhere}
.events li{margin:2px 0}.when{color:var(--soft);font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:0;font-size:.925rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media (max-width:640px){main{padding:16px 10px 32px}section{padding:14px 12px}
.wide{display:none}.narrow{display:block}th,td{padding:6px 8px}
dl{grid-template-columns:1fr;gap:0}dd{margin:0 0 8px}}
"""
