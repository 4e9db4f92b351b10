"""The interval against what statistics say its width must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from streamadapt.errors import ConfigurationError
from streamadapt.replay.bootstrap import Pair, paired_interval


def pair(difference: NDArray[np.int64], domains: NDArray[np.int64]) -> Pair:
    """A policy that is wrong where `difference` is 1, against one that is wrong where it is -1."""
    return difference <= 0, difference >= 0, domains


def draw(rng: np.random.Generator, frames: int, *, run: int) -> NDArray[np.int64]:
    return rng.choice([-1, 0, 1], size=frames // run, p=[0.2, 0.5, 0.3]).repeat(run)


@pytest.mark.parametrize(("run", "seeds"), [(1, 1), (1, 4), (16, 1), (16, 4)])
def test_width_is_that_of_the_independent_pieces(run: int, seeds: int) -> None:
    rng = np.random.default_rng(run + seeds)
    domains, frames = 5, 6400
    owner = np.arange(domains).repeat(frames)
    shown = [draw(rng, domains * frames, run=run) for _ in range(seeds)]
    found = paired_interval([pair(one, owner) for one in shown], block_frames=128)
    assert found.estimate == pytest.approx(np.mean(shown))
    standard_error = np.std(shown) / math.sqrt(domains * frames * seeds / run)
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
    assert (found.high + found.low) / 2 == pytest.approx(found.estimate, abs=0.3 * standard_error)


def test_every_domain_counts_the_same_and_unlabelled_frames_do_not() -> None:
    domains = np.concatenate([np.zeros(10), np.ones(990), np.full(50, -1)]).astype(int)
    difference = np.concatenate([np.ones(10), np.zeros(990), -np.ones(50)]).astype(int)
    found = paired_interval([pair(difference, domains)])
    assert (found.low, found.estimate, found.high) == (0.5, 0.5, 0.5)


def test_a_short_domain_still_varies() -> None:
    difference = np.arange(40) % 2
    found = paired_interval([pair(difference, np.zeros(40, int))], block_frames=64)
    rare = paired_interval([pair((np.arange(40) < 20).astype(int), np.zeros(40, int))])
    assert found.estimate == rare.estimate == 0.5
    assert rare.low < 0.4 and rare.high > 0.6


def test_mistakes_that_both_make_cancel() -> None:
    right = np.random.default_rng(0).random(500) < 0.5
    found = paired_interval([(right, right, np.zeros(500, int))])
    assert (found.low, found.estimate, found.high) == (0.0, 0.0, 0.0)


def test_is_drawn_by_its_seed() -> None:
    one = pair(draw(np.random.default_rng(0), 640, run=4), np.arange(640) // 320)
    assert paired_interval([one]) == paired_interval([one]) != paired_interval([one], seed=1)


def test_nothing_gives_nan_and_nonsense_an_error() -> None:
    assert math.isnan(paired_interval([([], [], [])]).estimate)
    with pytest.raises(ConfigurationError, match=r"same frames, got \[2\], \[3\] and \[2\]"):
        paired_interval([([True] * 2, [True] * 3, [0, 0])])
    for wrong in ({"block_frames": 0}, {"draws": 0}, {"level": 1.0}):
        with pytest.raises(ConfigurationError, match="must be at least 1 and `level`"):
            paired_interval([], **wrong)  # type: ignore[arg-type]
