"""Camera time: what outages, jumps and missing stamps become."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamadapt.frames.timeline import Timeline


def shown(timeline: Timeline, stamps: list[float | None], *, period: float = 0.04) -> list[float]:
    return [
        timeline.next(stamp, 100.0 + index * period, interrupted=False)[0]
        for index, stamp in enumerate(stamps)
    ]


def test_stamps_count_from_the_first() -> None:
    assert shown(Timeline(is_live=True), [7.0, 7.04, 7.08]) == pytest.approx([0, 0.04, 0.08])


def test_an_outage_takes_one_frame_of_time() -> None:
    timeline = Timeline(is_live=True)
    shown(timeline, [0.0, 0.1, 0.2, 0.3])
    seconds, follows = timeline.next(95.0, 500.0, interrupted=True)
    assert seconds == pytest.approx(0.4) and not follows
    assert timeline.next(95.1, 500.1, interrupted=False) == (pytest.approx(0.5), True)


def test_a_gap_is_an_outage_of_a_camera_and_time_of_a_file() -> None:
    for live, wanted in ((True, 0.3), (False, 10.0)):
        timeline = Timeline(is_live=live)
        shown(timeline, [0.0, 0.1, 0.2])
        seconds, follows = timeline.next(10.0, 200.0, interrupted=False)
        assert seconds == pytest.approx(wanted) and follows is not live


def test_a_file_without_stamps_has_the_usual_rate() -> None:
    assert shown(Timeline(is_live=False), [None] * 3) == pytest.approx([0, 0.04, 0.08])
    assert shown(Timeline(is_live=False, period_seconds=0.5), [None] * 3) == [0, 0.5, 1.0]


def test_a_camera_without_stamps_has_the_time_of_arrival() -> None:
    assert shown(Timeline(is_live=True), [None] * 3, period=0.2) == pytest.approx([0, 0.2, 0.4])


def test_stamps_may_begin_late() -> None:
    timeline = Timeline(is_live=True)
    found = [
        timeline.next(stamp, 100.0 + 0.04 * index, interrupted=False)
        for index, stamp in enumerate([None, 0.04, 0.08])
    ]
    assert [one for one, _ in found] == pytest.approx([0, 0.04, 0.08])
    assert [follows for _, follows in found] == [False, True, True]


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats(-1e6, 1e6)), st.booleans()),
        min_size=1,
        max_size=50,
    ),
    st.booleans(),
)
def test_camera_time_never_runs_backwards(
    frames: list[tuple[float | None, bool]], live: bool
) -> None:
    timeline = Timeline(is_live=live)
    last = 0.0
    for index, (stamp, interrupted) in enumerate(frames):
        seconds, _ = timeline.next(stamp, 0.04 * index, interrupted=interrupted)
        assert seconds >= last
        last = seconds


def test_frames_that_were_held_up_are_late() -> None:
    timeline = Timeline(is_live=True)
    late = [timeline.behind_seconds(0.04 * k, 10.0 + 0.04 * k) for k in range(10)]
    assert max(late) < 0.01
    # Held up for five seconds, then given all at once.
    burst = [timeline.behind_seconds(0.4 + 0.04 * k, 15.4) for k in range(100)]
    assert burst[0] == pytest.approx(5.0, abs=0.02) and burst[-1] == pytest.approx(1.04, abs=0.02)


def test_clocks_that_drift_apart_make_nothing_late() -> None:
    timeline = Timeline(is_live=True)
    hour = range(0, 3600 * 25, 25)
    late = [timeline.behind_seconds(k / 25, 10.0 + k / 25 * (1 + 2e-4)) for k in hour]
    assert max(late) < 0.01
