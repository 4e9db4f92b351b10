"""How alike frames on end are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamadapt.guard.likeness import Likeness


def film(steps: int, rho: float, width: int = 3, seed: int = 0) -> np.ndarray:
    """Vectors that are correlated on end."""
    rng = np.random.default_rng(seed)
    out = rng.normal(size=(steps, width))
    for step in range(1, steps):
        out[step] = rho * out[step - 1] + math.sqrt(1.0 - rho**2) * out[step]
    return out + 5.0


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("size", [1, 7, 50])
def test_it_is_the_correlation_on_end(rho: float, size: int) -> None:
    likeness, values = Likeness(3, window_frames=5000.0), film(4000, rho)
    for begin in range(0, 4000, size):
        part = torch.from_numpy(values[begin : begin + size])
        (found,) = likeness.add([1], [0] * len(part), part).tolist()
    assert found == pytest.approx(rho, abs=0.05)


def test_no_row_feels_another_and_order_is_within_a_row() -> None:
    one, other = film(300, 0.9, seed=1), film(300, 0.0, seed=2)
    together, alone = Likeness(4, window_frames=64.0), Likeness(1, window_frames=64.0)
    for begin in range(0, 300, 5):
        mixed = np.stack([one[begin : begin + 5], other[begin : begin + 5]], axis=1).reshape(10, 3)
        found = together.add([3, 0], [0, 1] * 5, torch.from_numpy(mixed))
        own = alone.add([0], [0] * 5, torch.from_numpy(one[begin : begin + 5]))
    assert found[0].item() == pytest.approx(own.item(), abs=1e-12)
    assert found[1].item() < 0.4 < found[0].item()


def test_a_picture_that_never_moves_says_next_to_nothing() -> None:
    likeness = Likeness(1, window_frames=64.0)
    assert likeness.add([0], [0], torch.ones(1, 2)).tolist() == [0.0]  # nothing is known yet
    for _ in range(5):
        found = likeness.add([0], [0] * 4, torch.ones(4, 2))
    assert found.item() == pytest.approx(0.99)


def test_it_begins_anew() -> None:
    likeness = Likeness(2, window_frames=64.0)
    likeness.forget([0])
    for values in (film(40, 0.95), film(40, 0.0, width=2)):  # another width forgets as well
        likeness.add([0], [0] * 40, torch.from_numpy(values))
    likeness.forget([0])
    assert likeness.add([0], [0], torch.ones(1, 2)).tolist() == [0.0]
