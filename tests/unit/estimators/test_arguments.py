"""What an estimator refuses, and how it says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamadapt.errors import ConfigurationError
from streamadapt.estimators import DUA, EMA, MECTA, AlphaBN, Estimator, SourcePrior, Welford

nan, inf = float("nan"), float("inf")
UNITS = "`momentum`, `half_life_frames` and `half_life_seconds`"

REFUSED: list[tuple[Callable[[], Estimator], str]] = [
    (
        lambda: EMA(1.5),
        "`momentum` must be in (0, 1], got 1.5. To keep the source statistics, use Frozen().",
    ),
    (
        lambda: EMA(0.0),
        "`momentum` must be in (0, 1], got 0.0. To keep the source statistics, use Frozen().",
    ),
    (
        lambda: EMA(momentum=nan),
        "`momentum` must be in (0, 1], got nan. To keep the source statistics, use Frozen().",
    ),
    (
        lambda: EMA(half_life_frames=0.0),
        "`half_life_frames` must be positive and finite, got 0.0.",
    ),
    (
        lambda: EMA(half_life_frames=inf),
        "`half_life_frames` must be positive and finite, got inf.",
    ),
    (
        lambda: EMA(half_life_seconds=-3.0),
        "`half_life_seconds` must be positive and finite, got -3.0.",
    ),
    (
        lambda: EMA(half_life_seconds=nan),
        "`half_life_seconds` must be positive and finite, got nan.",
    ),
    (
        lambda: EMA(0.1, half_life_frames=5.0),
        f"Give exactly one of {UNITS}, got `momentum` and `half_life_frames`.",
    ),
    (
        lambda: EMA(half_life_frames=5.0, half_life_seconds=1.0),
        f"Give exactly one of {UNITS}, got `half_life_frames` and `half_life_seconds`.",
    ),
    (
        lambda: EMA(0.1, rule="torch"),  # type: ignore[arg-type]
        '`rule` must be "mixture" or "pytorch", got \'torch\'.',
    ),
    (
        lambda: SourcePrior(-1.0),
        "`source_weight` must be finite and at least 0 frames, got -1.0.",
    ),
    (
        lambda: SourcePrior(inf),
        "`source_weight` must be finite and at least 0 frames, got inf.",
    ),
    (
        lambda: Welford(0),
        "`max_frames` must be a positive number of frames or None, got 0.",
    ),
    (
        lambda: Welford(nan),
        "`max_frames` must be a positive number of frames or None, got nan.",
    ),
    (
        lambda: Welford(prior_frames=-2.0),
        "`prior_frames` must be finite and at least 0, got -2.0.",
    ),
    (
        lambda: Welford(prior_frames=inf),
        "`prior_frames` must be finite and at least 0, got inf.",
    ),
    (
        lambda: Welford(100, prior_frames=128),
        "`prior_frames` (128) exceeds `max_frames` (100): the prior would be cut to the cap. "
        "Lower it, or raise the cap.",
    ),
    (lambda: DUA(decay=0.0), "`decay` must be in (0, 1], got 0.0."),
    (lambda: DUA(decay=1.01), "`decay` must be in (0, 1], got 1.01."),
    (
        lambda: DUA(-0.1),
        "`momentum` and `floor` must be at least 0 with a sum in (0, 1], got -0.1 and 0.005.",
    ),
    (
        lambda: DUA(0.9, floor=0.2),
        "`momentum` and `floor` must be at least 0 with a sum in (0, 1], got 0.9 and 0.2.",
    ),
    (
        lambda: DUA(0.0, floor=0.0),
        "`momentum` and `floor` must be at least 0 with a sum in (0, 1], got 0.0 and 0.0.",
    ),
    (
        lambda: DUA(nan),
        "`momentum` and `floor` must be at least 0 with a sum in (0, 1], got nan and 0.005.",
    ),
    (
        lambda: AlphaBN(0.0),
        "`alpha` must be in (0, 1], got 0.0. To keep the source statistics, use Frozen().",
    ),
    (
        lambda: AlphaBN(nan),
        "`alpha` must be in (0, 1], got nan. To keep the source statistics, use Frozen().",
    ),
    (lambda: MECTA(0.0), "`scale` must be positive and finite, got 0.0."),
    (lambda: MECTA(floor=inf), "`floor` must be positive and finite, got inf."),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_setting_out_of_range_is_refused_with_what_to_do(
    make: Callable[[], Estimator], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)


def test_the_contract_alone_is_no_estimator() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Estimator()  # type: ignore[abstract]
