"""Frames that are worth comparing."""

from __future__ import annotations

import math

import pytest

from streamadapt.guard.spacing import Spacing


def shown(spacing: Spacing, steps: int, size: int, fps: float, seconds: float) -> list[list[int]]:
    """What is chosen of each step, where what frames say fades over so many seconds."""
    chosen, now, last = [], 0.0, -math.inf
    for _ in range(steps):
        elapsed = size / fps
        now += elapsed
        spacing.pass_time(elapsed)
        own = spacing.choose(list(range(10, 10 + size)), elapsed)
        chosen.append(own)
        if own:
            gap = min((now - last) / len(own), 100.0)
            spacing.measured(math.exp(-gap / seconds) if seconds else 0.0)
            last = now
    return chosen


def test_where_each_frame_is_another_picture_all_are_compared() -> None:
    assert shown(Spacing(), 5, 16, 25.0, 0.0) == [list(range(10, 26))] * 5


@pytest.mark.parametrize("size", [1, 5, 50])
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_where_frames_are_alike_they_are_compared_less_often(size: int, seconds: float) -> None:
    spacing = Spacing()
    chosen = shown(spacing, 20_000 // size, size, 25.0, seconds)
    late = chosen[len(chosen) // 2 :]
    passed = len(late) * size / 25.0
    assert passed / sum(map(len, late)) == pytest.approx(math.log(17 / 15) * seconds, rel=0.5)


def test_it_is_never_longer_than_four_seconds() -> None:
    spacing = Spacing()
    late = shown(spacing, 4000, 5, 25.0, 100.0)[2000:]
    assert spacing.seconds <= 4.0
    assert sum(map(len, late)) == pytest.approx(2000 * 5 / 25.0 / 4.0, rel=0.1)


def test_frames_of_a_large_step_are_spread_over_it() -> None:
    spacing = Spacing()
    spacing.pass_time(8.0)
    assert spacing.choose(list(range(200)), 8.0) == list(range(0, 200, 4))  # 64 at most
    spacing.measured(0.999)
    spacing.pass_time(8.0)
    assert spacing.seconds == 4.0
    assert spacing.choose(list(range(200)), 8.0) == [0, 100]
    assert spacing.choose([], 8.0) == []
