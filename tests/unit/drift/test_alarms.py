"""What alarms may promise."""

from __future__ import annotations

import math
from typing import Any

import pytest

from streamadapt.drift.alarms import Alarms
from streamadapt.errors import ConfigurationError


def test_by_default_a_camera_alarms_falsely_once_a_month() -> None:
    assert Alarms().expected_run_seconds == 30 * 24 * 3600


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("expected_run_seconds", [0.0, -1.0, math.inf, math.nan], "positive and finite"),
        ("rate_hz", [0.0, -1.0, math.inf, math.nan], "positive and finite"),
        ("fleet_window_seconds", [0.0, -1.0, math.inf, math.nan], "positive and finite"),
        ("fleet_cameras", [0, -1, True, 2.5, math.nan], "a whole number of at least 1"),
    ],
)
def test_what_is_out_of_range_is_named(name: str, values: list[Any], message: str) -> None:
    for value in values:
        with pytest.raises(ConfigurationError) as caught:
            Alarms(**{name: value})
        assert str(caught.value) == f"`{name}` must be {message}, got {value}."
