"""Former states: near ones close together, distant ones far apart, and never too many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamadapt.bank import RowState, Tallies
from streamadapt.guard.ring import StateRing


def state(frames: float) -> RowState:
    """One that says when it was taken."""
    return RowState(torch.full((1, 2, 1), float(frames)), torch.zeros(1, 2), Tallies(0, ()))


def filled(capacity: int, frames: int, *, step: int = 1) -> StateRing:
    ring = StateRing(capacity)
    for seen in range(step, frames + 1, step):
        if ring.due(seen):
            ring.add(seen, state(seen))
    return ring


@pytest.mark.parametrize("step", [1, 30, 256])
def test_a_copy_is_due_at_first_and_then_every_256_frames(step: int) -> None:
    ring, taken = StateRing(100), []
    for seen in range(step, 3000, step):
        if ring.due(seen):
            ring.add(seen, state(seen))
            taken.append(seen)
    assert taken[0] == step
    gaps = np.diff(taken)
    assert (gaps >= 256).all() and (gaps < 256 + step).all()
    assert ring.frames == tuple(taken)


@settings(max_examples=25)
@given(st.integers(1, 9), st.lists(st.floats(1.0, 1e5), max_size=60))
def test_there_are_never_more_than_the_capacity_and_the_newest_is_among_them(
    capacity: int, gaps: list[float]
) -> None:
    ring, added = StateRing(capacity), []
    for seen in np.cumsum(gaps):
        ring.add(float(seen), state(seen))
        added.append(float(seen))
        assert len(ring.frames) == min(capacity, len(added))
        assert ring.frames[-1] == added[-1]
        assert list(ring.frames) == sorted(ring.frames)
        if capacity > 1:
            assert ring.frames[0] == added[0]  # the source, or near it


@pytest.mark.parametrize("step", [8, 300])
@pytest.mark.parametrize("capacity", [4, 6, 10])
def test_ages_grow_about_geometrically(capacity: int, step: int) -> None:
    for frames in (20_000, 50_001, 130_000):
        ring = filled(capacity, frames, step=step)
        ages = frames - np.array(ring.frames) + 256.0
        factors = ages[:-1] / ages[1:]
        ideal = (ages[0] / ages[-1]) ** (1.0 / (capacity - 1))
        assert ideal / 4.0 < factors.min() and factors.max() < 4.0 * ideal


@pytest.mark.parametrize("delay", [0, 1, 255, 700, 3000, 10_000, 40_000, 59_744])
def test_the_state_before_a_delay_is_not_much_older_than_the_delay(delay: int) -> None:
    ring = filled(6, 60_000, step=256)
    times = ring.frames
    found = ring.older_than(60_000 - delay)
    assert found is not None
    taken = found.data[0, 0, 0].item()
    assert taken == max(when for when in times if when <= 60_000 - delay)
    assert 60_000 - taken + 256 < 9.0 * (delay + 256)
    assert ring.frames == tuple(when for when in times if when <= taken)


def test_what_came_after_the_state_that_is_put_back_is_forgotten() -> None:
    ring = filled(6, 5000)
    before = ring.frames
    found = ring.older_than(before[3])
    assert found is not None and found.data[0, 0, 0].item() == before[3]
    assert ring.frames == before[:4]
    assert ring.due(5001)
    ring.add(5001, state(5001))
    assert ring.frames == (*before[:4], 5001)


def test_without_an_older_state_there_is_none() -> None:
    assert StateRing(3).older_than(1e9) is None
    ring = filled(3, 2000)
    assert ring.older_than(0) is None and ring.frames == ()
    ring = filled(3, 2000)
    ring.clear()
    assert ring.frames == () and ring.due(2001)
    assert ring.older_than(1e9) is None
