"""The report: one file, nothing fetched, nothing from outside taken as markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from streamadapt.replay.chart import Band, Chart, Line
from streamadapt.replay.page import render_chart_svg, render_page
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
    page = render_page(replay(), title="A stream")
    outline = Outline(page)
    for tag, attributes in outline.tags:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert not {"src", "href", "xlink:href", "onload", "onclick"} & set(attributes)
    assert "@import" not in page
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}


def test_page_shows_errors_events_and_what_was_run() -> None:
    text = Outline(render_page(replay(), title="A stream")).text.replace("\N{NO-BREAK SPACE}", " ")
    for expected in (
        "A stream",
        "24 frames in 3 domains",
        "12.5 %",  # frozen in the first domain: 7 of 8 right
        "25.0 %",  # the mean
        "rolled back: to a, reason r",
        "0123456789ab",
        "torch 2.13.0",
        "all (oracle)",
        "does ema",
    ):
        assert expected in text, expected


def test_charts_are_described_for_those_who_do_not_see_them() -> None:
    outline = Outline(render_page(replay(), title="A stream"))
    drawings = [attributes for tag, attributes in outline.tags if tag == "svg"]
    assert len(drawings) == 4  # two charts, for wide and for narrow screens
    idents = [attributes.get("id") for _, attributes in outline.tags if attributes.get("id")]
    assert len(set(idents)) == len(idents)
    for attributes in drawings:
        assert attributes["role"] == "img"
        for ident in (attributes["aria-labelledby"] or "").split():
            assert ident in idents
    assert any(tag == "table" for tag, _ in outline.tags)


def test_policies_differ_in_more_than_colour() -> None:
    page = render_page(replay(), title="A stream")
    styles = re.findall(r"\.line-(\d)\{stroke:var\(--c\d\);stroke-dasharray:([^}]*)\}", page)
    dashes = [dash for _, dash in styles]
    assert len(set(dashes)) == len(dashes) >= 7
    used = {match for match in re.findall(r'class="line line-(\d)"', page)}
    assert len(used) == 3


def test_light_and_dark_and_small_screens() -> None:
    page = render_page(replay(), title="A stream")
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page
    assert "max-width:640px" in page


def test_everything_from_outside_is_escaped() -> None:
    evil = replay(
        name=EVIL,
        versions={EVIL: EVIL},
        policies=[series(EVIL, distance=True), series("frozen")],
        events=[ReplayEvent(0, EVIL, EVIL, {EVIL: EVIL})],
        scenario={"seed": EVIL, "batch_size": EVIL, "order": EVIL, "model": EVIL, "data": EVIL},
    )
    page = render_page(evil, title=EVIL)
    assert "<script" not in page
    Outline(page)
    assert "<script" not in render_chart_svg(evil)
    ElementTree.fromstring(render_chart_svg(evil))


def test_picture_is_well_formed_and_stands_alone() -> None:
    root = ElementTree.fromstring(render_chart_svg(replay()))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    charts = root.findall("{http://www.w3.org/2000/svg}svg")
    assert len(charts) == 2
    assert root.find("{http://www.w3.org/2000/svg}style") is not None
    assert int(root.get("height", "0")) == sum(int(chart.get("height", "0")) for chart in charts)


def test_without_distances_and_events_the_page_says_so() -> None:
    page = render_page(replay(policies=[series("frozen")], events=[]), title="A stream")
    assert "Distance from the source statistics" not in page
    assert "None. Nothing was rejected" in page
    assert len(ElementTree.fromstring(render_chart_svg(replay(policies=[series("a")])))) == 2


def test_a_flood_of_events_is_cut_short() -> None:
    flood = [ReplayEvent(0, "ema", "FramesRejected", {"frames": 1})] * 5000
    page = render_page(replay(events=flood), title="A stream")
    assert "And 4,940 more, in the JSON." in page
    assert len(page) < 100_000


def test_narrow_bands_are_numbered_with_a_key() -> None:
    bands = [Band(f"a long name {i}", str(i), i, i + 1) for i in range(9)]
    chart = Chart("t", "d", [Line("l", [0, 9], [0.2, 0.4], 0)], bands, [], "x", (0, 1), True)
    drawing = chart.svg("c", width=300, height=100)
    assert ">4</text>" in drawing
    assert "4 a long name 4" in drawing


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-9, 3e-9], [5.0, 123456.0], [None, 2.0]])
def test_any_range_gets_an_axis(values: list[float | None]) -> None:
    top = max(value or 0.0 for value in values)
    line = Line("l", [0, 1], values, 0)
    chart = Chart("t", "d", [line], [Band("b", "1", 0, 2)], [], "x", (0, top), False)
    drawing = chart.svg("c", width=400, height=100)
    assert "nan" not in drawing
    labels = re.findall(r'text-anchor="end">([^<]+)</text>', drawing)
    assert len(set(labels)) == len(labels) >= 2


@pytest.mark.parametrize("labelled", [True, False])
def test_domains_that_lie_in_one_another_are_drawn_as_one(labelled: bool) -> None:
    mixed = replay(frame_domains=np.arange(24) % 3, labelled=np.full(24, labelled))
    outline = Outline(render_page(mixed, title="mixed"))
    assert "all domains, in one another" in outline.text
    ElementTree.fromstring(render_chart_svg(mixed))
