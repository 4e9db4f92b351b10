"""The guard's settings are refused where they make no sense."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from streamadapt import Guard
from streamadapt.errors import ConfigurationError


def test_by_default_comparing_costs_half_a_percent() -> None:
    guard = Guard()
    assert (guard.share, guard.margin, guard.quality, guard.health) == (0.005, 0.05, True, None)
    with pytest.raises(FrozenInstanceError):
        guard.share = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "arguments",
    [
        {"share": 0.0},
        {"share": 1},
        {"margin": 0.999},
        {"snapshots": 4},
        {"cooldown_seconds": 1e-3},
        {"cooldown_seconds": 86_400},
    ],
)
def test_the_whole_legal_range_is_taken(arguments: dict[str, Any]) -> None:
    Guard(**arguments)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("share", [-0.001, 1.001, math.nan, math.inf], "between 0 and 1"),
        ("margin", [0.0, 1.0, -0.1, math.nan], "between 0 and 1"),
        ("snapshots", [0, -3, 3, True, 4.5, 6.0, math.nan], "a whole number of at least 4"),
        ("cooldown_seconds", [0.0, -1.0, math.inf, math.nan], "positive and finite"),
    ],
)
def test_what_is_out_of_range_is_named(name: str, values: list[Any], message: str) -> None:
    for value in values:
        with pytest.raises(ConfigurationError) as caught:
            Guard(**{name: value})
        assert str(caught.value) == f"`{name}` must be {message}, got {value}."
