"""A reader through outages, ends and faults of its source."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from streamadapt.frames import Backoff, CameraStatus, FrameReader, Picture
from streamadapt.frames.mailbox import Delivery
from streamadapt.frames.source import SourceError, SourceLostError

QUICK = Backoff(first_seconds=0.001, most_seconds=0.002)


def picture(index: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)


class Scripted:
    """A source that does what it is told: a picture, an error to raise, or what to call."""

    name = "scripted"

    def __init__(self, *openings: list[object], live: bool = True) -> None:
        self.is_live = self.returns = live
        self._openings = list(openings)
        self._script: Iterator[object] = iter(())
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1
        script = self._openings.pop(0) if self._openings else [SourceLostError("gone for good")]
        if script and isinstance(script[0], Exception):
            raise script[0]
        self._script = iter(script)

    def read(self) -> Picture | None:
        step = next(self._script, None)
        if isinstance(step, Exception):
            raise step
        if callable(step):
            step()
            return self.read()
        assert step is None or isinstance(step, Picture)
        return step

    def close(self) -> None:
        self.closed += 1


def pictures(first: int, count: int, *, start: float = 0.0, size: int = 8) -> list[object]:
    return [
        Picture(picture(index, size), start + (index - first) / 25)
        for index in range(first, first + count)
    ]


def reader(source: Scripted, **options: object) -> FrameReader:
    settings: dict[str, object] = {"delivery": Delivery("every"), "backoff": QUICK}
    return FrameReader(source, stream_id="dock-1", **(settings | options))  # type: ignore[arg-type]


def test_an_outage_is_counted_and_bridged() -> None:
    changes: list[CameraStatus] = []
    over = threading.Event()
    source = Scripted(
        pictures(0, 30),
        [SourceLostError("no route")],
        [SourceLostError("no route")],
        [*pictures(30, 12, start=700.0, size=16), lambda: over.wait(10)],
    )
    with reader(source, warm_up_frames=8, on_change=changes.append) as camera:
        frames = [camera.get(timeout=5) for _ in range(42)]
        status = camera.status
        over.set()
    assert all(frames)
    assert [one.frame_id for one in frames] == list(range(42))
    assert status.outages == 1 and status.counts.received == 42
    stamps = [one.pts_seconds for one in frames]
    assert np.diff(stamps) == pytest.approx(0.04)  # the outage has no part in camera time
    broken = [one.frame_id for one in frames if one.discontinuity]
    assert broken == [0, 30]
    warming = [one.frame_id for one in frames if one.rejection == "reconnect"]
    assert warming == list(range(30, 38))
    states = [one.state for one in changes]
    assert states[:3] == ["running", "reconnecting", "reconnecting"] and "running" in states[3:]
    assert changes[1].trouble == "scripted: the stream ended."
    assert source.closed == source.opened


def test_a_change_of_size_is_a_discontinuity() -> None:
    source = Scripted([*pictures(0, 2), *pictures(2, 2, start=0.08, size=16)], live=False)
    frames = list(reader(source))
    assert [one.discontinuity for one in frames] == [True, False, True, False]


def test_a_file_ends_and_a_loop_goes_on() -> None:
    assert len(list(reader(Scripted(pictures(0, 3), live=False)))) == 3
    source = Scripted(pictures(0, 3), pictures(0, 3), pictures(0, 3), live=False)
    with reader(source, loop=True) as camera:
        frames = [camera.get(timeout=5) for _ in range(9)]
    assert all(frames)
    assert [one.frame_id for one in frames if one.discontinuity] == [0, 3, 6]
    assert np.diff([one.pts_seconds for one in frames]) == pytest.approx(0.04)
    assert {one.rejection for one in frames} == {None}


def test_nothing_is_not_looped_over() -> None:
    assert list(reader(Scripted([], [], live=False), loop=True)) == []


def test_what_cannot_be_used_is_raised_by_whoever_asks() -> None:
    camera = reader(Scripted([SourceError("scripted: no video")], live=False))
    with pytest.raises(SourceError, match="no video"):
        next(iter(camera))
    assert camera.status.state == "failed" and camera.status.trouble == "scripted: no video"


def test_an_unexpected_error_is_told_without_credentials() -> None:
    camera = reader(Scripted([OSError("rtsp://u:pa55@host/ broke")]))
    with pytest.raises(SourceError) as caught:
        camera.get(timeout=5)
    assert "pa55" not in str(caught.value) and "***@host" in str(caught.value)


def test_frames_before_a_fault_are_handed_on() -> None:
    camera = reader(Scripted([*pictures(0, 3), SourceError("scripted: damaged")], live=False))
    frames = []
    with pytest.raises(SourceError, match="damaged"):
        frames.extend(camera)  # as far as it goes
    assert camera.status.counts.delivered == 3


@pytest.mark.parametrize("ever_there", [False, True])
def test_giving_up(ever_there: bool) -> None:
    first = pictures(0, 2) if ever_there else [SourceLostError("scripted: refused.")]
    backoff = Backoff(0.001, 0.002, give_up_seconds=0.05, first_contact_seconds=0.05)
    camera = reader(Scripted(first), backoff=backoff)
    with pytest.raises(SourceError, match=r"Given up after 0\.05 s"):
        while camera.get(timeout=5) is not None:
            pass
    forever = Backoff(0.001, 0.002, give_up_seconds=None if ever_there else 0.05)
    with reader(Scripted(first), backoff=forever) as camera:
        while camera.get(timeout=0.3) is not None:
            pass
        assert camera.status.state == ("reconnecting" if ever_there else "connecting")


def test_waits_grow_and_are_spread() -> None:
    backoff = Backoff(0.5, 30.0)
    for attempt, longest in enumerate([0.5, 1, 2, 4, 8, 16, 30, 30]):
        waits = [backoff.wait_seconds(attempt) for _ in range(200)]
        assert longest / 2 <= min(waits) < 0.6 * longest
        assert 0.9 * longest < max(waits) <= longest
    assert backoff.wait_seconds(10_000) <= 30.0


def test_closing_does_not_wait_for_a_source_that_hangs() -> None:
    released = threading.Event()
    source = Scripted([lambda: released.wait(20)])
    camera = reader(source).start()
    started = time.monotonic()
    camera.close()
    assert time.monotonic() - started < 1.0
    assert camera.status.state == "closed" and camera.get(timeout=1) is None
    released.set()
    thread = camera._thread
    assert thread is not None
    thread.join(5)
    assert not thread.is_alive() and source.closed == 1


def test_latest_drops_what_nobody_takes() -> None:
    seen = threading.Event()
    source = Scripted([*pictures(0, 20), seen.set, lambda: time.sleep(0.05), *pictures(20, 1)])
    with reader(source, delivery=Delivery("latest")) as camera:
        assert seen.wait(5)
        frame = camera.get(timeout=5)
        assert frame is not None and frame.frame_id == 19
        assert camera.status.counts.drops == {"superseded": 19}


def test_a_file_in_real_time_is_read_as_it_was_taken() -> None:
    source = Scripted(pictures(0, 11), live=False)
    started = time.monotonic()
    frames = list(reader(source, pace=True))
    assert time.monotonic() - started >= 0.39
    assert len(frames) == 11 and all(one.is_live for one in frames)


def test_a_handler_that_raises_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: CameraStatus) -> None:
        raise ValueError("oops")

    handler: Callable[[CameraStatus], None] = broken
    assert len(list(reader(Scripted(pictures(0, 3), live=False), on_change=handler))) == 3
    assert "on_change of scripted raised" in caplog.text
