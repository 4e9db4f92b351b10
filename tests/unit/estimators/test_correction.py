"""Which layers frames bring their own statistics into, and from where on."""

from __future__ import annotations

import itertools
import math

import pytest

import streamadapt as sa
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import FrameCorrection, Restarting
from streamadapt.testing import frames, tiny_model


def test_a_part_of_the_layers_with_levels_that_fall() -> None:
    thresholds = FrameCorrection().thresholds(19)
    assert len(thresholds) == 7
    assert thresholds[0] == pytest.approx(3.5 * 0.8) and thresholds[-1] == pytest.approx(3.5 * 0.1)
    ratios = [b / a for a, b in itertools.pairwise(thresholds)]
    assert ratios == pytest.approx([ratios[0]] * 6)
    assert [len(FrameCorrection(depth=d).thresholds(10)) for d in (0.01, 0.5, 1.0)] == [1, 5, 10]
    assert len(FrameCorrection().thresholds(1)) == 1


def test_levels_come_from_the_profile_unless_they_were_given() -> None:
    profile = sa.calibrate(tiny_model(), [frames(64, seed=1)])
    found = FrameCorrection(depth=1.0, usual=100.0).calibrated(profile).levels
    assert found == pytest.approx([max(float(one), 0.01) for one in profile.frame_distance])
    given = FrameCorrection(levels=[0.3])
    assert given.calibrated(profile) is given
    estimator = Restarting().calibrated(profile)
    assert estimator.correction is not None
    assert estimator.correction.levels == FrameCorrection().calibrated(profile).levels
    assert Restarting(own_depth=0.0).correction is None
    assert Restarting(own_depth=0.0).calibrated(profile).correction is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0.0}, "`depth` must be above 0 and at most 1, got 0.0."),
        ({"depth": math.nan}, "`depth` must be above 0 and at most 1, got nan."),
        ({"usual": -1.0}, "`usual` must be positive and finite, got -1.0."),
        ({"levels": [0.1, 0.0]}, r"`levels` must be positive and finite, got \[0.1, 0.0\]."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FrameCorrection(**arguments)  # type: ignore[arg-type]
