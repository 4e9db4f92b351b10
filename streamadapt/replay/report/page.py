"""Replays as one HTML page: nothing is fetched, no script runs, everything is inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from streamadapt.replay.report.calibration import reliability_panels
from streamadapt.replay.report.facts import extent, facts
from streamadapt.replay.report.forest import forest
from streamadapt.replay.report.layers import layer_map
from streamadapt.replay.report.lines import Chart
from streamadapt.replay.report.markup import Markup, counted, html, join, tag
from streamadapt.replay.report.over_time import (
    distance_chart,
    diversity_chart,
    error_chart,
    event_words,
    shown,
    window_frames,
)
from streamadapt.replay.report.pareto import pareto
from streamadapt.replay.report.pool import Pool, pool
from streamadapt.replay.report.style import page_css
from streamadapt.replay.report.summary import headline
from streamadapt.replay.report.tables import (
    compare_table,
    diversity_table,
    error_table,
    layer_table,
    policy_table,
    reliability_table,
    visit_table,
)
from streamadapt.replay.result import ReplayResult

_WIDE, _NARROW = 900, 360
_EVENTS_SHOWN = 60

Remarks = Mapping[str, Sequence[str]]
Draw = Callable[[str, int], Markup | None]


def render_report(
    results: Sequence[ReplayResult],
    *,
    title: str | None = None,
    compare: Sequence[tuple[str, str]] = (),
    remarks: Remarks | None = None,
) -> str:
    """A self-contained HTML page about one or several replays.

    Results of one scenario under several seeds are pooled; other scenarios follow one another.
    The same results give the same page, byte for byte.

    Args:
        results: what `streamadapt.replay.run` returned, at least one.
        title: heading of the page; the scenario's name when None.
        compare: pairs of policies to set against each other, domain by domain.
        remarks: further sections by heading, each a list of sentences; shown after the headline.

    Raises:
        ConfigurationError: no result, one seed of a scenario twice, or an unknown policy.
    """
    pools = pool(results)
    for first, second in compare:
        for one in pools:
            one.rank(first), one.rank(second)
    alone = len(pools) == 1
    if title is None:
        title = pools[0].first.name if alone else f"{len(pools)} scenarios"
    parts = [tag("h1", title)]
    for number, one in enumerate(pools):
        if not alone:
            parts.append(tag("h2", one.first.name))
        page = _Page(one, level=2 if alone else 3, prefix=f"s{number}-")
        parts += page.parts(compare, (remarks or {}) if number == 0 else {})
    body = join(parts, "\n")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html(title)}</title>\n<style>{page_css()}</style>\n</head>\n"
        f'<body class="sa-chart">\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


class _Page:
    """What is said of one scenario."""

    def __init__(self, pooled: Pool, *, level: int, prefix: str) -> None:
        self.pool = pooled
        self.level = level
        self.prefix = prefix

    def parts(self, compare: Sequence[tuple[str, str]], remarks: Remarks) -> list[Markup]:
        one = self.pool
        return [
            tag("p", headline(one), class_="lead"),
            tag("p", extent(one), class_="sub"),
            *(self._remarks(heading, sentences) for heading, sentences in remarks.items()),
            self._policies(),
            *(self._compared(first, second) for first, second in compare),
            self._errors(),
            self._stream(),
            self._cost(),
            self._distance(),
            self._calibration(),
            self._diversity(),
            self._events(),
            self._setup(),
        ]

    def _section(self, heading: str, *body: Markup | None, note: str = "") -> Markup:
        content = [part for part in body if part is not None]
        if not content:
            return Markup()
        if note:
            content.append(tag("p", note, class_="note"))
        return tag("section", tag(f"h{self.level}", heading), *content)

    def _remarks(self, heading: str, sentences: Sequence[str]) -> Markup:
        return self._section(
            heading, tag("ul", join(tag("li", one) for one in sentences), class_="remarks")
        )

    def _figure(self, ident: str, draw: Draw) -> Markup | None:
        """Text in a scaled drawing shrinks with it, so a phone gets a drawing of its own."""
        wide = draw(f"{self.prefix}{ident}-wide", _WIDE)
        narrow = draw(f"{self.prefix}{ident}-narrow", _NARROW)
        if wide is None or narrow is None:
            return None
        return join([tag("figure", wide, class_="wide"), tag("figure", narrow, class_="narrow")])

    def _chart(self, ident: str, chart: Chart | None, height: int) -> Markup | None:
        if chart is None:
            return None
        return self._figure(
            ident, lambda name, width: chart.svg(name, width=width, height=height, heading=False)
        )

    def _policies(self) -> Markup:
        one = self.pool
        gains = [
            (rank.name + (" (oracle)" if rank.oracle else ""), rank.gain)
            for rank in sorted(one.ranks, key=lambda rank: (rank.error, rank.name))
            if rank.gain is not None
        ]
        figure = (
            self._figure(
                "gains",
                lambda name, width: forest(
                    name,
                    gains,
                    title=f"Difference to {one.baseline}",
                    description=headline(one),
                    width=width,
                ),
            )
            if gains
            else None
        )
        return self._section(
            "Policies",
            figure,
            policy_table(one),
            note="Error is the mean over the domains. Intervals are from a paired block bootstrap "
            "over the frames of every domain and seed. An oracle saw a whole domain before it "
            "answered: a bound, not a rival.",
        )

    def _compared(self, first: str, second: str) -> Markup:
        rows = [
            (name or "mean", self.pool.interval(first, second, name))
            for name in [*self.pool.domains, None]
        ]
        ident = f"compare-{self.pool.names.index(first)}-{self.pool.names.index(second)}"
        figure = self._figure(
            ident,
            lambda name, width: forest(
                name,
                rows,
                title=f"{first} against {second}",
                description="The table below has the same in numbers.",
                width=width,
            ),
        )
        return self._section(
            f"{first} against {second}",
            figure,
            _details("In numbers", compare_table(self.pool, first, second)),
        )

    def _errors(self) -> Markup:
        visits = visit_table(self.pool)
        return self._section(
            "Error by domain",
            error_table(self.pool),
            None if visits is None else _details("By visit", visits),
            note=f"Shades: against {self.pool.baseline}, from blue, far better, to orange, far "
            "worse, at 1, 5, 10 and 20 points. Bold: the lowest of the row, oracles aside.",
        )

    def _stream(self) -> Markup:
        one = self.pool
        note = (
            f"Each point pools about {window_frames(one.first)} frames around it, of the same "
            "domain only. Shaded bands are the domains."
        )
        if len(one.results) > 1:
            note += f" Drawn is seed {one.seeds[0]}: each seed has an order of its own."
        left = len(one.ranks) - len(shown(one))
        if left:
            note += f" {left} policies with higher error are left out; the tables have them."
        return self._section(
            "Error over the stream", self._chart("error", error_chart(one), 280), note=note
        )

    def _cost(self) -> Markup:
        return self._section(
            "Cost against error",
            self._figure(
                "pareto", lambda name, width: pareto(name, self.pool, width=width, height=300)
            ),
            note="Latency was measured on the machine that ran the replay, with whatever else it "
            "did at the time. The table of policies has the numbers and those without a name here.",
        )

    def _distance(self) -> Markup:
        result = self.pool.first
        mapped = [series for series in result.policies if series.layer_distance]
        by_error = sorted(mapped, key=lambda series: (self.pool.error(series.name), series.name))
        parts = []
        for number, series in enumerate(by_error):
            figure = self._figure(
                f"layers-{number}",
                lambda name, width, series=series: layer_map(name, result, series, width=width),  # type: ignore[misc]
            )
            body = join([figure or Markup(), _details("In numbers", layer_table(result, series))])
            head = tag(f"h{self.level + 1}", f"By layer: {series.name}")
            parts.append(join([head, body]))
        if len(parts) > 1:
            rest = counted(len(parts) - 1, "other policy", "other policies")
            parts[1:] = [_details(f"By layer: {rest}", join(parts[1:]))]
        return self._section(
            "Distance from the source statistics",
            self._chart("distance", distance_chart(self.pool), 180),
            *parts,
            note="How far the statistics in use have moved from those the model was trained with. "
            "A world that changed moves them; that alone does not say that the model is worse.",
        )

    def _calibration(self) -> Markup:
        names = list(shown(self.pool))

        def draw(ident: str, width: int) -> Markup | None:
            columns = min(len(names), 4) if width > 600 else 2
            return reliability_panels(ident, self.pool, names, width=width, columns=columns)

        figure = self._figure("reliability", draw)
        return self._section(
            "Calibration",
            figure,
            None if figure is None else _details("In numbers", reliability_table(self.pool, names)),
            note="Across: confidence. Up: accuracy. Dashed: as they should be; below it the policy "
            "is surer than it is right. The area of a dot is the share of the frames. ECE: "
            "expected calibration error, 15 bins.",
        )

    def _diversity(self) -> Markup:
        chart = diversity_chart(self.pool)
        return self._section(
            "Diversity of the predictions",
            self._chart("diversity", chart, 180),
            None if chart is None else _details("In numbers", diversity_table(self.pool)),
            note="Effective number of classes predicted over 128 frames, exp of the entropy of "
            "the mean prediction. One that falls to 1 has collapsed, whatever its confidence; "
            "where the frames themselves hold few classes, all curves are low.",
        )

    def _events(self) -> Markup:
        events = [(result, event) for result in self.pool.results for event in result.events]
        if not events:
            nothing = tag("p", "None. Nothing was rejected, rolled back or refused.")
            return self._section("Events", nothing)
        several = len(self.pool.results) > 1
        items = join(
            tag(
                "li",
                tag(
                    "span",
                    f"seed {result.scenario.get('seed')}, " if several else "",
                    f"batch {event.batch + 1} ",
                    class_="when",
                ),
                tag("b", event.policy),
                f" {event_words(event)}",
            )
            for result, event in events[:_EVENTS_SHOWN]
        )
        left = len(events) - _EVENTS_SHOWN
        rest = tag("p", f"And {left:,} more, in the JSON.") if left > 0 else None
        return self._section("Events", tag("ol", items, class_="events"), rest)

    def _setup(self) -> Markup:
        said = facts(self.pool).items()
        rows = join(join([tag("dt", key), tag("dd", value)]) for key, value in said)
        return self._section("Set-up", tag("dl", rows))


def _details(summary: str, body: Markup) -> Markup:
    return tag("details", tag("summary", summary), body)
