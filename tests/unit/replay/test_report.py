"""The report: one file, nothing fetched, nothing from outside taken as markup."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from streamadapt.errors import ConfigurationError
from streamadapt.replay.bootstrap import Interval
from streamadapt.replay.report import (
    Condition,
    Pool,
    headline,
    pool,
    render_picture,
    render_report,
    to_csv,
    to_dict,
)
from streamadapt.replay.report.lines import Band, Chart, Line
from streamadapt.replay.report.pareto import front
from streamadapt.replay.report.pool import Rank
from streamadapt.replay.result import DomainSpan, PolicySeries, ReplayEvent, ReplayResult
from streamadapt.replay.scores import reliability

EVIL = '<script>alert("x")</script>&'
RIGHT = (4, 3, 2, 1, 4, 4)  # right answers of each batch
VOID = {"meta", "br", "hr", "img", "link", "input"}


def series(name: str, *, oracle: bool = False, distance: bool = False) -> PolicySeries:
    return PolicySeries(
        name=name,
        description=f"does {name}",
        oracle=oracle,
        correct=np.array([frame % 4 < right for right in RIGHT for frame in range(4)]),
        confidence=[0.5] * 6,
        diversity=[3.0] * 6,
        reliability=reliability(np.zeros(0), np.zeros(0, bool)),
        layer_distance={},
        layer_batches=[],
        adapted=[True] * 6,
        distance=[0.1 * step if distance else None for step in range(6)],
        latency_seconds=[0.001] * 6,
    )


def replay(*, name: str = "tiny", domains: int = 3, **changes: object) -> ReplayResult:
    values: dict[str, object] = {
        "name": name,
        "configuration_hash": "0123456789ab",
        "scenario": {"seed": 0, "batch_size": 4, "order": "iid"},
        "data": {"samples": 5, "height": 8, "width": 8, "sha256": "ab"},
        "model": {"class": "Net", "sha256": "cd"},
        "versions": {"torch": "2.13.0"},
        "domains": [
            DomainSpan(f"{name} {i}", 0, "fog", (3,), 8 * i, 8, 1.0) for i in range(domains)
        ],
        "batch_frames": [4] * 2 * domains,
        "frame_domains": np.repeat(np.arange(domains), 8),
        "frame_streams": None,
        "labelled": np.ones(8 * domains, bool),
        "policies": [series("frozen"), series("ema", distance=True), series("all", oracle=True)],
        "events": [ReplayEvent(2, "ema", "RolledBack", {"step": 2, "to": "a", "reason": "r"})],
        "wall_seconds": 1.0,
    }
    return ReplayResult(**{**values, **changes})  # type: ignore[arg-type]


class Outline(HTMLParser):
    """Checks that tags nest, and keeps what they say."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_whole_and_fetches_nothing() -> None:
    page = render_report([replay()], title="A stream")
    outline = Outline(page)
    for tag, attributes in outline.tags:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert not {"src", "href", "xlink:href", "onload", "onclick"} & set(attributes)
    assert "@import" not in page
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}


def test_page_shows_errors_events_and_what_was_run() -> None:
    text = Outline(render_report([replay()], title="A stream")).text.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    for expected in (
        "A stream",
        "24 frames in 3 domains",
        "12.5 %",  # frozen in the first domain: 7 of 8 right
        "25.0 %",  # the mean
        "rolled back: to a, reason r",
        "0123456789ab",
        "torch 2.13.0",
        "alloracle",
        "Nothing is surely better than frozen",
        "does ema",
    ):
        assert expected in text, expected


def test_charts_are_described_for_those_who_do_not_see_them() -> None:
    outline = Outline(render_report([replay()], title="A stream"))
    drawings = [attributes for tag, attributes in outline.tags if tag == "svg"]
    assert len(drawings) >= 8  # each for wide and for narrow screens
    idents = [attributes.get("id") for _, attributes in outline.tags if attributes.get("id")]
    assert len(set(idents)) == len(idents)
    for attributes in drawings:
        assert attributes["role"] == "img"
        for ident in (attributes["aria-labelledby"] or "").split():
            assert ident in idents
    assert any(tag == "table" for tag, _ in outline.tags)


def test_policies_differ_in_more_than_colour() -> None:
    page = render_report([replay()], title="A stream")
    styles = re.findall(r"\.line-(\d)\{stroke:var\(--c\d\);stroke-dasharray:([^}]*)\}", page)
    dashes = [dash for _, dash in styles]
    assert len(set(dashes)) == len(dashes) >= 7
    used = {match for match in re.findall(r'class="line line-(\d)"', page)}
    assert len(used) == 3


def test_light_and_dark_and_small_screens() -> None:
    page = render_report([replay()], title="A stream")
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page
    assert "max-width:640px" in page


def test_everything_from_outside_is_escaped() -> None:
    evil = replay(
        name=EVIL,
        versions={EVIL: EVIL},
        policies=[series(EVIL, distance=True), series("frozen")],
        events=[ReplayEvent(0, EVIL, EVIL, {EVIL: EVIL})],
        scenario={"seed": 0, "batch_size": EVIL, "order": EVIL, "model": EVIL, "data": EVIL},
    )
    page = render_report([evil], title=EVIL)
    assert "<script" not in page
    Outline(page)
    assert "<script" not in render_picture(evil)
    ElementTree.fromstring(render_picture(evil))


def test_picture_is_well_formed_and_stands_alone() -> None:
    root = ElementTree.fromstring(render_picture(replay()))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    charts = root.findall("{http://www.w3.org/2000/svg}svg")
    assert len(charts) == 2
    assert root.find("{http://www.w3.org/2000/svg}style") is not None
    assert int(root.get("height", "0")) == sum(int(chart.get("height", "0")) for chart in charts)


def test_without_distances_and_events_the_page_says_so() -> None:
    page = render_report([replay(policies=[series("frozen")], events=[])], title="A stream")
    assert "Distance from the source statistics" not in page
    assert "None. Nothing was rejected" in page
    assert len(ElementTree.fromstring(render_picture(replay(policies=[series("a")])))) == 2


def test_a_flood_of_events_is_cut_short() -> None:
    flood = [ReplayEvent(0, "ema", "FramesRejected", {"frames": 1})] * 5000
    page = render_report([replay(events=flood)], title="A stream")
    assert "And 4,940 more, in the JSON." in page
    assert len(page) < 150_000


def test_names_of_narrow_bands_are_turned_and_cut_not_laid_over_one_another() -> None:
    bands = [Band(f"quite a long name {i}", i, i + 1) for i in range(60)]
    chart = Chart("t", "d", [Line("l", [0, 60], [0.2, 0.4], 0)], bands, "x", (0, 1), True)
    drawing = chart.svg("c", width=300, height=100)
    turned = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="end" transform="rotate', drawing)
    places = [float(x) for x in turned]
    assert 5 < len(places) < 20
    assert min(np.diff(places)) > 14
    assert all(f"<title>{band.name}</title>" in drawing for band in bands)


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-9, 3e-9], [5.0, 123456.0], [None, 2.0]])
def test_any_range_gets_an_axis(values: list[float | None]) -> None:
    top = max(value or 0.0 for value in values)
    line = Line("l", [0, 1], values, 0)
    chart = Chart("t", "d", [line], [Band("b", 0, 2)], "x", (0, top), False)
    drawing = chart.svg("c", width=400, height=100)
    assert "nan" not in drawing
    labels = re.findall(r'text-anchor="end">([^<]+)</text>', drawing)
    assert len(set(labels)) == len(labels) >= 2


@pytest.mark.parametrize("labelled", [True, False])
def test_domains_that_lie_in_one_another_are_drawn_as_one(labelled: bool) -> None:
    mixed = replay(frame_domains=np.arange(24) % 3, labelled=np.full(24, labelled))
    outline = Outline(render_report([mixed], title="mixed"))
    assert "all domains, in one another" in outline.text
    ElementTree.fromstring(render_picture(mixed))


# Numbers -----------------------------------------------------------------------------------------


def random_replay(seed: int, *, names: tuple[str, ...] = ("frozen", "a", "b")) -> ReplayResult:
    """Two visits of each of two domains, with other answers for every seed."""
    rng = np.random.default_rng(seed)
    places = np.repeat(np.arange(4), 50)
    spans = [
        DomainSpan(name, visit, "fog", (3,), 50 * i, 50, 1.0)
        for i, (name, visit) in enumerate([("x", 0), ("y", 0), ("x", 1), ("y", 1)])
    ]
    rates = {name: 0.4 + 0.15 * index for index, name in enumerate(names)}
    policies = [
        PolicySeries(
            name=name,
            description=name,
            oracle=False,
            correct=rng.random(200) < rate,
            confidence=[0.5] * 20,
            diversity=[3.0] * 20,
            reliability=reliability(rng.random(200), rng.random(200) < rate),
            layer_distance={"bn1": [0.1, 0.2], "bn2": [0.3, float("nan")]},
            layer_batches=[4, 19],
            adapted=[True] * 20,
            distance=[0.1] * 20,
            latency_seconds=[0.001 * (1 + index)] * 20,
        )
        for index, (name, rate) in enumerate(rates.items())
    ]
    result = replay(
        scenario={"seed": seed, "batch_size": 10, "order": "iid"},
        frame_domains=places,
        labelled=np.ones(200, bool),
        batch_frames=[10] * 20,
        policies=policies,
        events=[],
    )
    return replace(result, domains=spans)


def cells_of(page: str, caption: str) -> list[list[str]]:
    """The table of that caption, as text."""
    found = next(t for t in page.split("<table>") if t.startswith(f"<caption>{caption}<"))
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", found.split("</table>")[0])
    return [
        [
            re.sub("<small>.*?</small>|<[^>]*>", "", cell)
            for cell in re.findall("<t[hd].*?</t[hd]>", row)
        ]
        for row in rows
    ]


def test_the_heat_map_holds_the_errors_of_all_visits_and_seeds() -> None:
    results = [random_replay(seed) for seed in range(3)]
    table = cells_of(render_report(results), "Error by domain and policy")
    assert table[0] == ["domain", "frozen", "a", "b"]
    for row, inside in zip(table[1:], ([0, 2], [1, 3], [0, 1, 2, 3]), strict=True):
        for number, cell in enumerate(row[1:]):
            right = [
                result.policies[number].correct[result.frame_domains == place]
                for result in results
                for place in inside
            ]
            assert cell == f"{100 * (1 - np.concatenate(right).mean()):.1f}\N{NO-BREAK SPACE}%"


def test_pooled_numbers_are_means_over_seeds() -> None:
    results = [random_replay(seed) for seed in (4, 2)]
    (one,) = pool(results)
    assert one.seeds == (2, 4)
    assert one.error("a") == pytest.approx(np.mean([r.mean_error("a") for r in results]))
    rank = one.rank("b")
    assert rank.gain is not None
    expected = np.mean([r.mean_error("b") - r.mean_error("frozen") for r in results])
    assert rank.gain.estimate == pytest.approx(expected)
    assert rank.cost == pytest.approx(3.0)
    bins = one.reliability("a")
    assert sum(bins.frames) == 400
    total = sum(n * a for n, a in zip(bins.frames, bins.accuracy, strict=True) if n)
    each = [r.policy("a").reliability for r in results]
    assert total == pytest.approx(
        sum(n * a for b in each for n, a in zip(b.frames, b.accuracy, strict=True) if n)
    )


def test_the_same_results_in_any_order_give_the_same_bytes() -> None:
    results = [random_replay(seed) for seed in range(2)]
    assert render_report(results) == render_report(results[::-1])
    again = [ReplayResult.from_json(result.to_json()) for result in results]
    assert render_report(again) == render_report(results)


def test_layers_keep_their_order_through_a_file() -> None:
    series = random_replay(0).policies[0]
    layers = {f"features.{number}": [0.1, 0.2] for number in (0, 1, 2, 10, 11)}
    result = replace(random_replay(0), policies=[replace(series, layer_distance=layers)])
    table = cells_of(
        render_report([ReplayResult.from_json(result.to_json())]), "Mean distance by layer: frozen"
    )
    assert [row[0] for row in table[1:]] == list(layers)


def test_other_scenarios_follow_one_another_under_headings_in_order() -> None:
    other = replace(random_replay(0), name="other")
    outline = Outline(render_report([random_replay(0), other, random_replay(1)]))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels.count(2) == 2
    assert all(after - before <= 1 for before, after in pairwise(levels))
    idents = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(set(idents)) == len(idents)


def test_one_seed_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="same seed, 3"):
        render_report([random_replay(3), random_replay(3)])
    with pytest.raises(ConfigurationError, match="at least one"):
        render_report([])


def test_a_comparison_is_made_domain_by_domain() -> None:
    page = render_report([random_replay(0)], compare=[("b", "a")])
    table = cells_of(page, "b against a")
    assert [row[0] for row in table] == ["domain", "x", "y", "mean"]
    interval = random_replay(0).interval("b", "a")
    assert table[-1][3].startswith(f"{100 * interval.estimate:+.1f}".replace("-", "−"))
    with pytest.raises(ConfigurationError, match="no policy `c`"):
        render_report([random_replay(0)], compare=[("c", "a")])


def test_many_policies_and_visits_stay_within_the_page() -> None:
    names = ("frozen", *(f"policy number {i}" for i in range(16)))
    result = random_replay(0, names=names)
    page = render_report([result])
    used = set(re.findall(r'class="line line-(\d)"', page))
    assert len(used) == 7
    assert len(cells_of(page, "Policies, lowest error first")) == 18
    assert "10 policies with higher error are left out" in page
    assert [row[0] for row in cells_of(page, "Error by visit")[1:]] == ["visit 1", "visit 2"]


def test_a_run_without_durations_has_a_report() -> None:
    result = random_replay(0)
    silent = [replace(series, latency_seconds=[]) for series in result.policies]
    page = render_report([replace(result, policies=silent)])
    assert "Cost against error" not in page
    assert "nan" not in Outline(page).text


def rank(name: str, error: float, cost: float, *, oracle: bool = False) -> Rank:
    return Rank(name, "", oracle, error, Interval(0, 0, 0), 0, cost, 1, 1, 0)


def test_the_front_is_what_nothing_beats() -> None:
    ranks = [
        rank("frozen", 0.5, 1.0),
        rank("slow and bad", 0.5, 2.0),
        rank("good", 0.3, 1.5),
        rank("best", 0.2, 9.0),
        rank("bound", 0.1, 0.5, oracle=True),
        rank("unknown", 0.1, float("nan")),
    ]
    assert [one.name for one in front(ranks)] == ["frozen", "good", "best"]


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        ((-0.2, -0.1, -0.05), "10.0 points (95 %: 5.0 to 20.0) less than frozen"),
        ((-0.2, -0.1, 0.05), "Nothing is surely better than frozen"),
        ((0.05, 0.1, 0.2), "every policy hurts"),
    ],
)
def test_the_headline_claims_no_more_than_the_interval_allows(
    gain: tuple[float, float, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = [
        Rank("frozen", "", False, 0.4, None, 0, 1, 1, 1, 0),
        Rank("a", "", False, 0.3, Interval(*gain), 0, 1, 1, 1, 0),
    ]
    one = Pool([random_replay(0, names=("frozen", "a"))])
    monkeypatch.setattr(one, "ranks", ranks, raising=False)
    assert expected in headline(one).replace("\N{NO-BREAK SPACE}", " ")


# Numbers out, and conditions ---------------------------------------------------------------------


def test_csv_has_a_line_a_seed_policy_and_visit_and_adds_up() -> None:
    results = [random_replay(seed) for seed in range(2)]
    lines = list(csv.DictReader(io.StringIO(to_csv(pool(results)))))
    assert len(lines) == 2 * 3 * 4
    for result in results:
        for series in result.policies:
            wrong = [
                int(line["wrong"])
                for line in lines
                if line["policy"] == series.name and int(line["seed"]) == result.scenario["seed"]
            ]
            assert sum(wrong) == int((~series.correct).sum())
    assert all(float(li["error"]) == int(li["wrong"]) / int(li["labelled"]) for li in lines)


def test_json_out_is_strict_and_says_the_same_as_the_page() -> None:
    content = json.loads(json.dumps(to_dict(pool([random_replay(1)])), allow_nan=False))
    policies = {one["name"]: one for one in content["scenarios"][0]["policies"]}
    assert policies["a"]["error"] == random_replay(1).mean_error("a")
    assert policies["frozen"]["difference"] is None


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("error(a) > 0.9", False),
        ("error(a) > 0", True),
        ("error(a, x)>=0", True),
        ("error > 0.01", True),
        ("gain(b) < -1", False),
        ("gain( b , y ) <= 1", True),
        ("ece(a) > 1", False),
        ("cost(b) > 2.5", True),
        ("cost > 3.5", False),
        ('error("a") > 1e-3', True),
    ],
)
def test_conditions_hold_or_fail(text: str, fails: bool) -> None:
    failures = Condition.parse(text).failures(pool([random_replay(0)]))
    assert bool(failures) == fails
    assert all(text in line for line in failures)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "error",
        "error(a)",
        "error(a) = 1",
        "error(a) > one",
        "error(a) > nan",
        "speed(a) > 1",
        "error() > 1",
        "ece(a, x) > 1",
        "__import__('os') > 1",
    ],
)
def test_a_condition_that_cannot_be_read_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Example: error\(EMA\) > 0.35"):
        Condition.parse(text)


@pytest.mark.parametrize("text", ["error(c) > 1", "error(a, z) > 1"])
def test_a_condition_about_something_unknown_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="Known: "):
        Condition.parse(text).failures(pool([random_replay(0)]))


def test_what_is_not_known_fails_a_condition() -> None:
    result = random_replay(0)
    silent = [replace(series, latency_seconds=[]) for series in result.policies]
    lines = Condition.parse("cost(a) > 5").failures(pool([replace(result, policies=silent)]))
    assert "not known" in lines[0]
