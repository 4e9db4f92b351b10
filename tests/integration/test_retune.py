"""Other settings of the same estimator, in the middle of a stream."""

from __future__ import annotations

import pytest
import torch

import streamadapt as sa
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import EMA, Restarting, Welford
from tests.models import frames, residual
from tests.recorded import recorded


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def moments(processor):
    return processor.statistics()["bn1"]


def test_the_new_momentum_holds_from_the_next_batch_on():
    processor = sa.StreamProcessor(
        torch.nn.Sequential(torch.nn.BatchNorm2d(3)).eval(), estimator=EMA(0.5)
    )
    x = torch.full((1, 3, 2, 2), 4.0)
    processor(x)
    processor.retune(EMA(0.25))
    processor(x)
    assert processor.statistics()["0"].mean.tolist() == [2.5] * 3
    assert processor.event_counts["EstimatorRetuned"] == 1


@pytest.mark.parametrize("backend", ["auto", "hooks"])
def test_the_default_goes_on_as_one_that_had_the_settings_from_the_start(backend):
    steady = Restarting(clip=1.5, window_seconds=30.0)
    first = sa.StreamProcessor(residual(), estimator=steady, class_scores=False, backend=backend)
    second = sa.StreamProcessor(residual(), class_scores=False, backend=backend)
    second.retune(steady)
    for step in range(30):
        x = frames(4, seed=step, shift=2.0)
        torch.testing.assert_close(
            second(x, pts_seconds=step / 5), first(x, pts_seconds=step / 5), rtol=0, atol=0
        )
    assert moments(first).mean.tolist() == moments(second).mean.tolist()


def test_captured_steps_that_cannot_obey_are_dropped():
    processor = sa.StreamProcessor(residual(), estimator=EMA(0.5), backend="hooks")
    processor._runtime.captures.record = recorded
    processor.capture(torch.zeros(4, 3, 8, 8))
    processor.retune(EMA(0.1))
    assert processor.event_counts["CapturesDropped"] == 1
    processor(frames(4))


def test_streams_that_come_later_start_with_the_new_settings():
    processor = sa.StreamProcessor(residual(), max_streams=2, class_scores=False)
    processor(frames(2), streams="a")
    processor.retune(Restarting(level=0.4))
    processor(frames(2), streams="b")
    bank = processor._runtime.engine.bank
    assert bank.scalars[:, bank.scalar_names.index("level")].tolist()[1] == 0.4


@pytest.mark.parametrize(
    "other,why",
    [
        (Welford(), "is another rule"),
        (EMA(half_life_seconds=3.0), "`uses_time` differs"),
        (Restarting(own_depth=1.0), "corrects single frames in other layers"),
    ],
)
def test_another_rule_is_refused(other, why):
    first = Restarting() if isinstance(other, Restarting) else EMA(0.5)
    processor = sa.StreamProcessor(residual(), estimator=first)
    with pytest.raises(ConfigurationError, match=why):
        processor.retune(other)
    processor(frames(2))
    assert processor.event_counts["StepCompleted"] == 1
