"""Which frames are handed on, and that every one is counted."""

from __future__ import annotations

import threading
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamadapt.errors import ConfigurationError
from streamadapt.frames.frame import Frame
from streamadapt.frames.mailbox import Delivery, Mailbox


def frame(index: int, arrived: float = 0.0, *, live: bool = True) -> Frame:
    return Frame(
        data=None,
        stream_id="a",
        frame_id=index,
        pts_seconds=index / 25,
        wallclock=0.0,
        arrived=arrived,
        is_live=live,
    )


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def mailbox(delivery: Delivery, clock: Clock | None = None) -> Mailbox:
    return Mailbox(delivery, bell=threading.Condition(), clock=clock or Clock())


def drained(box: Mailbox) -> list[int]:
    found = []
    while (one := box.take()) is not None:
        found.append(one.frame_id)
    return found


@given(
    st.lists(st.sampled_from(["put", "take", "later"]), max_size=60),
    st.integers(1, 4),
    st.sampled_from([None, 0.5]),
)
def test_latest_hands_on_the_newest_in_order_and_counts_all(
    moves: list[str], capacity: int, staleness: float | None
) -> None:
    """Against a queue that is written down as the words say it."""
    clock = Clock()
    box = mailbox(Delivery("latest", staleness, capacity), clock)
    queue: deque[tuple[int, float]] = deque()
    put = taken = 0
    for move in moves:
        if move == "put":
            assert box.put(frame(put, clock.now))
            queue.append((put, clock.now))
            while len(queue) > capacity:
                queue.popleft()
            put += 1
        elif move == "later":
            clock.now += 0.3
        else:
            while queue and staleness is not None and clock.now - queue[0][1] > staleness:
                queue.popleft()
            wanted = queue.popleft()[0] if queue else None
            got = box.take()
            assert (None if got is None else got.frame_id) == wanted
            taken += wanted is not None
        counts = box.counts
        assert counts.received == put and counts.delivered == taken
        assert counts.received == counts.delivered + counts.dropped + counts.waiting
        assert counts.waiting <= capacity
    box.close()
    counts = box.counts
    assert counts.waiting == 0 and counts.received == counts.delivered + counts.dropped


def test_every_waits_for_room_and_loses_nothing() -> None:
    box = mailbox(Delivery("every", capacity=2))
    done = threading.Event()

    def produce() -> None:
        for index in range(50):
            box.put(frame(index, live=False))
        box.finish()
        done.set()

    thread = threading.Thread(target=produce)
    thread.start()
    found = []
    while not box.exhausted:
        with box.bell:
            box.bell.wait_for(lambda: box.oldest() is not None or box.exhausted, 5)
        one = box.take()
        if one is not None:
            found.append(one.frame_id)
    thread.join(5)
    assert found == list(range(50)) and done.is_set()
    assert box.counts.drops == {}


def test_closing_lets_a_waiting_reader_go_and_counts_its_frame() -> None:
    box = mailbox(Delivery("every", capacity=1))
    box.put(frame(0))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(box.put(frame(1))))
    thread.start()
    box.close()
    thread.join(5)
    assert answers == [False]
    assert box.counts.drops == {"closed": 2} and box.counts.waiting == 0


def test_drops_have_a_reason() -> None:
    clock = Clock()
    box = mailbox(Delivery("latest", 0.5, 2), clock)
    for index in range(3):
        box.put(frame(index, clock.now))
    assert box.counts.drops == {"overflow": 1}
    clock.now = 1.0
    assert drained(box) == []
    assert box.counts.drops == {"overflow": 1, "stale": 2}
    box = mailbox(Delivery("latest"))
    box.put(frame(0))
    box.put(frame(1))
    assert drained(box) == [1] and box.counts.drops == {"superseded": 1}


def test_late_live_frames_teach_nothing() -> None:
    clock = Clock()
    for live, wanted in ((True, "stale"), (False, None)):
        box = mailbox(Delivery("every", learn_seconds=2.0), clock)
        clock.now = 0.0
        box.put(frame(0, clock.now, live=live))
        clock.now = 3.0
        taken = box.take()
        assert taken is not None and taken.rejection == wanted


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"policy": "newest"}, "max_staleness"),
        ({"policy": "latest", "max_staleness": 0.0}, "positive"),
        ({"policy": "every", "capacity": 0}, "at least 1"),
    ],
)
def test_wrong_settings(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Delivery(**values)  # type: ignore[arg-type]
