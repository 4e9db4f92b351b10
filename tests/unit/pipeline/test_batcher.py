"""Batches of several cameras: who is waited for, and in which order frames come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from streamadapt import frames as fr
from streamadapt.errors import ConfigurationError
from streamadapt.frames import Frame, FrameReader
from streamadapt.pipeline import Batcher


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def batches(*readers: FrameReader, **options: object) -> list[list[Frame]]:
    bell = threading.Condition()
    batcher = Batcher(bell=bell, **options)  # type: ignore[arg-type]
    for reader in readers:
        reader.share(bell)
        batcher.add(reader)
        reader.start()
    found = []
    while (batch := batcher.next()) is not None:
        found.append(batch)
    for reader in readers:
        reader.close()
    return found


def named(batch: list[Frame]) -> list[tuple[object, int]]:
    return [(one.stream_id, one.frame_id) for one in batch]


@pytest.mark.parametrize("_", range(3))
def test_batches_of_files_are_the_same_each_time(_: int) -> None:
    found = batches(
        fr.open(pictures(5), stream_id="a"), fr.open(pictures(3), stream_id="b"), max_batch=4
    )
    for stream, count in (("a", 5), ("b", 3)):
        order = [k for batch in found for name, k in named(batch) if name == stream]
        assert order == list(range(count))
    assert [len(one) for one in found][:1] == [4]
    assert sorted(named(found[0])) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_one_file_fills_its_batches() -> None:
    found = batches(fr.open(pictures(10), capacity=8), max_batch=4)
    assert [len(one) for one in found] == [4, 4, 2]
    found = batches(fr.open(pictures(10), capacity=2), max_batch=4)  # as far as its room goes
    assert sum(map(len, found)) == 10 and max(map(len, found)) == 2


def camera(
    stop: threading.Event, *, period: float = 0.03, first: float = 0.0
) -> Iterator[np.ndarray]:
    """Pictures as a camera gives them; none any more once `stop` is set, and no end."""
    rng = np.random.default_rng(0)
    time.sleep(first)
    while not stop.is_set():
        yield rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        time.sleep(period)


def test_a_dead_camera_is_not_waited_for() -> None:
    bell, dead, over = threading.Condition(), threading.Event(), threading.Event()
    batcher = Batcher(bell=bell, max_batch=8, max_wait=5.0)

    def dying() -> Iterator[np.ndarray]:
        yield from camera(dead)
        over.wait(20)

    readers = [
        fr.open(camera(over), stream_id="alive", live=True),
        fr.open(dying(), stream_id="dying", live=True),
    ]
    for reader in readers:
        reader.share(bell)
        batcher.add(reader)
        reader.start()
    together = [batcher.next() for _ in range(10)]
    assert any(len(one or []) == 2 for one in together)
    dead.set()
    time.sleep(0.2)
    started = time.monotonic()
    alone = [batcher.next() for _ in range(10)]
    assert time.monotonic() - started < 2.0  # not ten times `max_wait`
    assert [len(one or []) for one in alone[2:]] == [1] * 8
    over.set()
    for reader in readers:
        reader.close()


def test_the_first_frame_waits_no_longer_than_it_may() -> None:
    bell, over = threading.Condition(), threading.Event()
    batcher = Batcher(bell=bell, max_batch=8, max_wait=0.02)
    readers = [
        fr.open(camera(over, period=0.1), stream_id="a", live=True),
        fr.open(camera(over, period=0.1, first=0.05), stream_id="b", live=True),
    ]
    for reader in readers:
        reader.share(bell)
        batcher.add(reader)
        reader.start()
    waited = []
    for _ in range(12):
        batch = batcher.next()
        assert batch is not None
        waited.append(time.monotonic() - min(one.arrived for one in batch))
    over.set()
    assert float(np.median(waited)) < 0.04
    for reader in readers:
        reader.close()


def test_no_more_cameras_in_a_batch_than_there_are_rows() -> None:
    readers = [fr.open(pictures(3), stream_id=name) for name in "abcd"]
    found = batches(*readers, max_batch=8, max_cameras=2)
    assert all(len({one.stream_id for one in batch}) <= 2 for batch in found)
    assert sum(map(len, found)) == 12


def test_names_are_unique_and_settings_checked() -> None:
    batcher = Batcher(bell=threading.Condition())
    batcher.add(fr.open(pictures(1), stream_id="a"))
    with pytest.raises(ConfigurationError, match="two cameras called 'a'"):
        batcher.add(fr.open(pictures(1), stream_id="a"))
    assert batcher.remove("b") is None
    for options in ({"max_batch": 0}, {"max_wait": -1.0}):
        with pytest.raises(ConfigurationError):
            Batcher(bell=threading.Condition(), **options)
