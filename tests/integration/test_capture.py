"""A captured step is the step: same answers, same statistics, same events, and it obeys later."""

from __future__ import annotations

import pytest
import torch

import streamadapt as sa
from streamadapt.errors import ConfigurationError, UnsupportedModelError
from tests.models import Residual, frames, randomise, residual, same, state_of
from tests.recorded import recorded

SIZES = (1, 3, 6, 4)
ESTIMATORS = {
    "EMA": sa.estimators.EMA,
    "Welford": sa.estimators.Welford,
    "default": sa.estimators.Restarting,
}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def processor(model=None, *, captured=(), **options):
    made = sa.StreamProcessor(model or residual(), backend="hooks", **options)
    made._runtime.captures.record = recorded
    for batch in captured:
        made.capture(torch.zeros(batch, 3, 8, 8))
    return made


def batches(count, *, shift_from=None, streams=1):
    for step in range(count):
        size = SIZES[step % len(SIZES)]
        shift = 20.0 if shift_from is not None and step >= shift_from else 1.0
        options = {"pts_seconds": step / 5}
        if streams > 1:
            options["streams"] = [f"camera-{(step + k) % streams}" for k in range(size)]
        yield frames(size, seed=step, shift=shift), options


def told(one):
    return {k: n for k, n in one.event_counts.items() if k != "StepCaptured"}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_stream_is_answered_and_followed_as_without(name, timing, streams):
    options = {"timing": timing, "max_streams": streams, "class_scores": False}
    plain = processor(estimator=ESTIMATORS[name](), **options)
    replayed = processor(estimator=ESTIMATORS[name](), captured=(2, 6), **options)
    for x, given in batches(48, shift_from=24, streams=streams):
        torch.testing.assert_close(replayed(x, **given), plain(x, **given), **TOLERANCE)
    assert told(replayed) == told(plain)
    for stream in plain._runtime.streams.streams:
        pair = (one.statistics(stream) for one in (replayed, plain))
        for mine, other in zip(*(found.values() for found in pair), strict=True):
            torch.testing.assert_close(mine.mean, other.mean, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(mine.var, other.var, rtol=1e-4, atol=1e-4)


def test_the_changes_that_a_user_makes_hold_for_what_is_recorded():
    plain, replayed = processor(), processor(captured=(6,))

    def both(do):
        for one in (plain, replayed):
            do(one)

    for step, (x, given) in enumerate(batches(40, shift_from=10)):
        if step == 12:
            both(lambda one: one.snapshot("now"))
        if step == 15:
            both(lambda one: one.freeze())
        if step == 20:
            both(lambda one: one.resume())
        if step == 25:
            both(lambda one: one.rollback("now"))
        if step == 30:
            both(lambda one: one.rollback("source"))
        torch.testing.assert_close(replayed(x, **given), plain(x, **given), **TOLERANCE)
    assert told(replayed) == told(plain)


def test_nothing_is_learned_from_capturing():
    made = processor(captured=(1, 4, 6), estimator=sa.estimators.EMA(0.5))
    assert same(state_of(made._runtime.model), state_of(residual()))
    assert made._runtime.engine.bank.updates.tolist() == [0.0]


def test_a_frame_that_is_not_finite_and_padding_count_nothing():
    plain, replayed = processor(), processor(captured=(6,))
    for step, (x, given) in enumerate(batches(16)):
        if step % 4 == 1:
            x[0] = torch.nan
        expected = plain(x, valid=max(1, len(x) - 1), **given)
        output = replayed(x, valid=max(1, len(x) - 1), **given)
        torch.testing.assert_close(output, expected, equal_nan=True, **TOLERANCE)
    assert told(replayed) == told(plain)
    assert replayed.event_counts["FramesRejected"] == 4


def test_an_output_is_the_callers_own():
    replayed = processor(captured=(4,))
    first = replayed(frames(4, seed=1))
    kept = first.clone()
    replayed(frames(4, seed=2))
    assert torch.equal(first, kept)


def test_what_the_guard_keeps_out_counts_nothing():
    guard = sa.Guard()
    plain, replayed = processor(guard=guard), processor(guard=guard, captured=(4,))
    for step in range(20):
        x = frames(4, seed=step)
        if step % 5 == 3:
            x[1] = 0.25  # one colour all over: no picture
        given = {"pts_seconds": step / 5}
        torch.testing.assert_close(replayed(x, **given), plain(x, **given), **TOLERANCE)
    assert told(replayed) == told(plain)
    assert replayed.event_counts["FramesRejected"] == 4


@pytest.mark.parametrize("what", ["larger", "wider", "double", "gradients", "arguments"])
def test_what_does_not_fit_runs_without_and_says_so(what):
    made = processor(captured=(4,), layers=None)
    x = frames(4)
    if what == "larger":
        made(frames(5))
    elif what == "wider":
        made(torch.zeros(4, 3, 9, 9))
    elif what == "double":
        with pytest.raises(RuntimeError):
            made(x.double())
    elif what == "gradients":
        with torch.enable_grad():
            made(x)
    else:
        with pytest.raises(TypeError):
            made(x, 1)
    assert made.event_counts["CaptureMissed"] == 1
    made(x)
    assert made.event_counts["CaptureMissed"] == 1


def test_a_model_that_is_moved_is_captured_no_more():
    made = processor(captured=(2, 4))
    made(frames(4))
    made._runtime.model.load_state_dict(residual(seed=5).state_dict())
    x = frames(4, seed=3)
    assert torch.equal(made(x), residual(seed=5)(x))
    assert made.event_counts["CapturesDropped"] == 1
    assert "CaptureMissed" not in made.event_counts


def test_a_capture_of_the_same_shape_takes_the_place_of_the_first():
    made = processor(captured=(4, 4, 2))
    assert len(made._runtime.captures) == 2


def test_what_cannot_be_captured_is_refused():
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ConfigurationError, match="Capturing needs a model on a CUDA device"):
        sa.StreamProcessor(residual()).capture(x)
    with pytest.raises(ConfigurationError, match="Only steps that adapt are captured"):
        processor(mode="shadow").capture(x)
    with pytest.raises(ConfigurationError, match="Only steps that adapt are captured"):
        processor(estimator=sa.estimators.Frozen()).capture(x)
    with pytest.raises(ConfigurationError, match="`example` must be a batch of frames"):
        processor().capture("frames")

    class Asks(Residual):
        def forward(self, x):
            return super().forward(x) * (2.0 if bool(x.sum() > 0) else 1.0)

    made = processor(randomise(Asks()))
    with pytest.raises(
        UnsupportedModelError, match=r"cannot be captured: .*a value was read by the host"
    ):
        made.capture(x)
    made(x)  # and goes on without
