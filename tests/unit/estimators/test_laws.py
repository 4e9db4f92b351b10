"""Every shipped estimator keeps every law, and the check notices when one is broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from streamadapt import estimators
from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import (
    DUA,
    EMA,
    MECTA,
    AlphaBN,
    BatchStatistics,
    Estimator,
    FrameCorrection,
    Frozen,
    Observation,
    Restarting,
    SourcePrior,
    Welford,
)
from streamadapt.moments import Moments
from streamadapt.testing import check_estimator, fake_observation, fake_state, frames, tiny_model

SHIPPED = (
    Frozen(),
    BatchStatistics(),
    SourcePrior(),
    SourcePrior(0.0),
    SourcePrior(1e6),
    EMA(),
    EMA(0.1),
    EMA(1.0),
    EMA(0.1, rule="pytorch"),
    EMA(half_life_frames=1.0),
    EMA(half_life_frames=1e6, rule="pytorch"),
    EMA(half_life_seconds=4.0),
    Welford(),
    Welford(20.0),
    Welford(0.5),
    Welford(prior_frames=16.0),
    Welford(100.0, prior_frames=16.0),
    DUA(),
    DUA(0.9, decay=1.0, floor=0.1),
    AlphaBN(),
    AlphaBN(1.0),
    MECTA(),
    MECTA(0.01),
    MECTA(100.0, floor=1e-6),
    Restarting(),
    # Hardly ever at rest: every step is a block, and nothing is too small to follow.
    Restarting(material=0.0, block_frames=1, block_seconds=0.01, alarm=1.5, clip=50.0),
    # At rest once it has settled, however far the world is from the source.
    Restarting(material=1e3, unlike=1e3, settling_seconds=0.1, max_weight=1.0),
)


@pytest.mark.parametrize("estimator", SHIPPED, ids=repr)
def test_every_shipped_estimator_keeps_every_law(estimator: Estimator) -> None:
    check_estimator(estimator)


@pytest.mark.parametrize("estimator", [EMA, Welford, DUA, Restarting])
def test_a_factory_is_checked_like_an_instance(estimator: type[Estimator]) -> None:
    check_estimator(estimator, seed=3, rows=2, channels=9)


def test_no_estimator_is_left_out() -> None:
    classes = {getattr(estimators, name) for name in estimators.__all__}
    assert {type(one) for one in SHIPPED} == classes - {Estimator, FrameCorrection, Observation}


def test_the_repr_tells_settings_apart() -> None:
    shown = [repr(one) for one in SHIPPED]
    assert len(set(shown)) == len(shown)
    assert repr(EMA()) == "EMA(half_life_frames=360, rule='mixture')"
    assert repr(SourcePrior(8)) == "SourcePrior(source_weight=8.0)"
    assert repr(DUA()) == "DUA(momentum=0.1, decay=0.94, floor=0.005)"
    assert repr(Welford(50)) == "Welford(max_frames=50, prior_frames=0.0)"
    assert repr(AlphaBN()) == "AlphaBN(alpha=0.1)"
    assert repr(MECTA(2)) == "MECTA(scale=2.0, floor=0.001)"
    assert repr(Frozen()) == "Frozen()"


# One broken estimator for every law --------------------------------------------------------------


class Half(Estimator):
    """Keeps every law; what the broken ones below start from."""

    def update(self, state: State, observed: Observation) -> State:
        return state.advance(state.moments.blend(observed.moments, 0.5))


def with_mean(state: State, mean: Tensor) -> State:
    return replace(state, moments=replace(state.moments, mean=mean))


def with_var(state: State, var: Tensor) -> State:
    return replace(state, moments=replace(state.moments, var=var))


class OddTiming(Half):
    timings: ClassVar[Any] = frozenset({"later"})


class Anonymous(Half):
    __repr__ = object.__repr__


class StartsAtNaN(Half):
    scalars: Mapping[str, float] = {"a": float("nan")}


class ForgetsItsScalar(Half):
    scalars: Mapping[str, float] = {"steps": 0.0}

    def update(self, state: State, observed: Observation) -> State:
        return replace(super().update(state, observed), scalars={})


class UndeclaredScalar(Half):
    def update(self, state: State, observed: Observation) -> State:
        return super().update(state, observed).advance(state.moments, steps=state.updates)


class Squeezed(Half):
    def update(self, state: State, observed: Observation) -> State:
        new = super().update(state, observed)
        return with_var(new, new.moments.var.mean(dim=1, keepdim=True))


class Single(Half):
    def update(self, state: State, observed: Observation) -> State:
        new = super().update(state, observed)
        return with_mean(new, new.moments.mean.float())


class ReturnsMoments(Half):
    def update(self, state: State, observed: Observation) -> Any:
        return observed.moments


class DividesByZero(Half):
    """Bessel's correction, straight from the textbook."""

    def update(self, state: State, observed: Observation) -> State:
        count = observed.moments.count
        return with_var(state, observed.moments.var * count / (count - 1))


class NegativeVariance(Half):
    """`E[x^2] - E[x]^2` of a constant, extrapolated."""

    def update(self, state: State, observed: Observation) -> State:
        old, batch = state.moments, observed.moments
        return with_var(state, old.var + 1.5 * (batch.var - old.var))


class InPlace(Half):
    def update(self, state: State, observed: Observation) -> State:
        state.moments.mean.lerp_(observed.moments.mean, 0.5)
        return state


class InPlaceObservation(Half):
    def update(self, state: State, observed: Observation) -> State:
        observed.moments.var.clamp_(min=1.0)
        return super().update(state, observed)


class Noisy(Half):
    def update(self, state: State, observed: Observation) -> State:
        mean = observed.moments.mean
        return with_mean(state, mean + 1e-12 * torch.rand_like(mean))


class Remembers(Half):
    """Keeps state of its own, outside the bank."""

    def __init__(self) -> None:
        self.weight = 1.0

    def update(self, state: State, observed: Observation) -> State:
        self.weight *= 0.9
        return state.advance(state.moments.blend(observed.moments, self.weight))


class GlobalVariance(Half):
    def update(self, state: State, observed: Observation) -> State:
        var = observed.moments.var
        return with_var(state, var.mean(dim=1, keepdim=True).expand_as(var))


class GlobalMean(Half):
    """All streams share what any of them sees."""

    def update(self, state: State, observed: Observation) -> State:
        mean = observed.moments.mean
        return with_mean(state, mean.mean(dim=0, keepdim=True).expand_as(mean))


class Floored(Half):
    def update(self, state: State, observed: Observation) -> State:
        new = super().update(state, observed)
        return with_var(new, new.moments.var + 0.1)


class MixesDeviations(Half):
    """Averages standard deviations and forgets to square them again."""

    def update(self, state: State, observed: Observation) -> State:
        return with_var(state, 0.5 * (state.moments.std + observed.moments.std))


class Shrinks(Half):
    def update(self, state: State, observed: Observation) -> State:
        new = super().update(state, observed)
        return with_mean(new, 0.9 * new.moments.mean)


class Impatient(Half):
    def update(self, state: State, observed: Observation) -> State:
        weight = 1.0 - torch.exp(-observed.elapsed_seconds)
        return state.advance(state.moments.blend(observed.moments, weight))


class CountsOnIt(Half):
    def update(self, state: State, observed: Observation) -> State:
        return state.advance(state.moments.merge(observed.moments))


class NeedsFrames(Half):
    def update(self, state: State, observed: Observation) -> State:
        if bool((observed.frames == 0).any()):
            raise ZeroDivisionError("no frames")
        return super().update(state, observed)


class InsistsOnNumbers(Half):
    def update(self, state: State, observed: Observation) -> State:
        if bool(observed.moments.mean.abs().max() > 1e100):
            raise OverflowError("too large")
        return super().update(state, observed)


class SaysItStays(Half):
    """Moves rows of which it says beforehand that it will not."""

    def may_move(
        self, scalars: Mapping[str, Tensor], frames: Tensor, elapsed_seconds: Tensor
    ) -> Tensor:
        return torch.zeros_like(frames, dtype=torch.bool)


class CountsLayers(Half):
    """A scalar that a layer which did not run changes for the whole row."""

    scalars: Mapping[str, float] = {"seen": 0.0}

    def update(self, state: State, observed: Observation) -> State:
        ran = (observed.moments.count > 0).all(dim=1, keepdim=True).double()
        return (
            super()
            .update(state, observed)
            .advance(super().update(state, observed).moments, seen=state.scalars["seen"] + ran)
        )


class RunsOut(Half):
    """A table of weights that ends."""

    def update(self, state: State, observed: Observation) -> State:
        table = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1, 0.05], dtype=torch.float64)
        weight = table[state.updates.long()]
        return state.advance(state.moments.blend(observed.moments, weight))


class Aside(Half):
    """Keeps every law, with a second pair of moments and phases of its own."""

    aside = True
    scalars: Mapping[str, float] = {"place": 0.0}

    def update(self, state: State, observed: Observation) -> State:
        new = super().update(state, observed)
        assert state.aside is not None
        return replace(new, aside=state.aside.blend(observed.moments, 0.25))

    def decide(self, old: State, new: State, observed: Observation) -> State:
        settles = new.scalars["place"] == 0.0
        place = torch.where(settles & torch.tensor(observed.settling), 1.0, new.scalars["place"])
        return new.advance(new.moments, place=place)

    def phase(self, scalars: Mapping[str, Tensor]) -> Tensor | None:
        return scalars["place"]


class LeavesNothingAside(Aside):
    def update(self, state: State, observed: Observation) -> State:
        return replace(super().update(state, observed), aside=None)


class NarrowAside(Aside):
    def update(self, state: State, observed: Observation) -> State:
        new = super().update(state, observed)
        assert new.aside is not None
        return replace(new, aside=replace(new.aside, var=new.aside.var.float()))


class NoSuchPhase(Aside):
    def decide(self, old: State, new: State, observed: Observation) -> State:
        place = new.scalars["place"] + 1.0
        return new.advance(new.moments, place=place)


class FlatPhase(Aside):
    def phase(self, scalars: Mapping[str, Tensor]) -> Tensor | None:
        return scalars["place"].flatten()


class DecidesByDivision(Aside):
    def decide(self, old: State, new: State, observed: Observation) -> State:
        assert old.aside is not None
        ratio = (new.moments.var / old.aside.var).mean(dim=1, keepdim=True)
        return super().decide(old, new, observed).advance(new.moments, place=0.0 * ratio)


class NegativeAside(Aside):
    def update(self, state: State, observed: Observation) -> State:
        assert state.aside is not None
        var = state.aside.var + 1.5 * (observed.moments.var - state.aside.var)
        return (
            super()
            .update(state, observed)
            .advance(state.moments, aside=replace(state.aside, var=var))
        )


class DecidesInPlace(Aside):
    def decide(self, old: State, new: State, observed: Observation) -> State:
        assert old.aside is not None
        old.aside.mean.mul_(0.5)
        return super().decide(old, new, observed)


class DecidesForAll(Aside):
    """All streams get what any of them has come to."""

    def decide(self, old: State, new: State, observed: Observation) -> State:
        mean = new.moments.mean.mean(dim=0, keepdim=True).expand_as(new.moments.mean)
        return with_mean(super().decide(old, new, observed), mean)


class FlooredAside(Aside):
    def update(self, state: State, observed: Observation) -> State:
        new = super().update(state, observed)
        assert new.aside is not None
        return replace(new, aside=replace(new.aside, var=new.aside.var + 0.1))


class CannotPass(Aside):
    """Takes a settling pass for granted on every row."""

    def decide(self, old: State, new: State, observed: Observation) -> State:
        if observed.settling and bool((observed.frames == 0).any()):
            raise ZeroDivisionError("no frames in a pass")
        return super().decide(old, new, observed)


BROKEN = {
    OddTiming: "declarations make sense",
    Anonymous: "declarations make sense",
    StartsAtNaN: "declarations make sense",
    ForgetsItsScalar: "results have the declared form",
    UndeclaredScalar: "results have the declared form",
    Squeezed: "results have the declared form",
    Single: "results have the declared form",
    ReturnsMoments: "results have the declared form",
    DividesByZero: "results are finite",
    NegativeVariance: "results are finite",
    InPlace: "arguments are left alone",
    InPlaceObservation: "arguments are left alone",
    Noisy: "the same input gives the same result",
    Remembers: "the same input gives the same result",
    GlobalVariance: "channels are treated alike",
    GlobalMean: "rows do not mix",
    Floored: "scaling the input scales the statistics",
    MixesDeviations: "scaling the input scales the statistics",
    Shrinks: "shifting the input shifts the mean alone",
    Impatient: "camera time matters where declared",
    CountsOnIt: "counts matter where declared",
    SaysItStays: "rows that may not move do not",
    NeedsFrames: "absent streams stay as they are",
    CountsLayers: "layers that did not run stay as they are",
    InsistsOnNumbers: "no row takes a value that is not finite",
    RunsOut: "every declared timing works",
    LeavesNothingAside: "results have the declared form",
    NarrowAside: "results have the declared form",
    NoSuchPhase: "phases are known ones",
    FlatPhase: "declarations make sense",
    DecidesByDivision: "results are finite",
    NegativeAside: "results are finite",
    DecidesInPlace: "arguments are left alone",
    DecidesForAll: "rows do not mix",
    FlooredAside: "scaling the input scales the statistics",
    CannotPass: "absent streams stay as they are",
}


@pytest.mark.parametrize("whole", [Half, Aside])
def test_the_broken_ones_are_broken_in_one_way_only(whole: type[Half]) -> None:
    check_estimator(whole)


@pytest.mark.parametrize(
    ("broken", "law"), BROKEN.items(), ids=lambda one: getattr(one, "__name__", None)
)
def test_a_broken_estimator_is_told_which_law_it_breaks(broken: type[Half], law: str) -> None:
    with pytest.raises(AssertionError, match=f"{broken.__name__}.* breaks the law `{law}`: "):
        check_estimator(broken)


def test_the_message_says_who_broke_what_and_how() -> None:
    with pytest.raises(AssertionError) as caught:
        check_estimator(Floored())
    assert str(caught.value) == (
        "Floored() breaks the law `scaling the input scales the statistics`: `var` (by up to "
        "0.0984) does not follow a factor of 8."
    )
    with pytest.raises(AssertionError) as caught:
        check_estimator(NeedsFrames())
    assert str(caught.value) == (
        "NeedsFrames() breaks the law `absent streams stay as they are`: it raised "
        "ZeroDivisionError: no frames"
    )
    with pytest.raises(AssertionError) as caught:
        check_estimator(Single())
    assert str(caught.value) == (
        "Single() breaks the law `results have the declared form`: `mean` is torch.float32 "
        "instead of torch.float64."
    )


@pytest.mark.parametrize(("rows", "channels"), [(1, 6), (3, 1)])
def test_an_example_too_small_to_tell_anything_is_refused(rows: int, channels: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_estimator(Half, rows=rows, channels=channels)
    assert str(caught.value) == (
        f"`rows` and `channels` must be at least 2, got {rows} and {channels}: with one there is "
        "nothing to mix up."
    )


# The fakes ---------------------------------------------------------------------------------------


def test_fakes_are_seeded_and_leave_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    one, two, other = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    batch = frames(3, seed=4)
    for left, right in ((one(batch), two(batch)), (batch, frames(3, seed=4))):
        assert torch.equal(left, right)
    assert not torch.equal(one(batch), other(batch))
    assert not torch.equal(batch, frames(3, seed=5))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_tiny_model_has_batchnorm_worth_adapting() -> None:
    model = tiny_model(2, classes=7)
    assert not model.training
    assert model(frames(2, channels=2, size=5)).shape == (2, 7)
    assert model(frames(0, channels=2)).shape == (0, 7)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean.abs().min() > 1e-3, name
            assert (module.running_var - 1).abs().min() > 1e-3 and (module.running_var > 0).all()


def test_frames_see_another_camera() -> None:
    plain, bright = frames(2, seed=1), frames(2, seed=1, gain=3.0, offset=2.0)
    torch.testing.assert_close(bright, 3.0 * plain + 2.0)


def test_a_fake_state_is_what_the_bank_would_hand_over() -> None:
    fresh = fake_state(DUA(), rows=2, channels=3)
    assert fresh.updates.eq(0).all() and fresh.frames.eq(0).all()
    assert fresh.scalars["dua_momentum"].tolist() == [[0.1], [0.1]]
    assert torch.equal(fresh.moments.mean, fresh.source.mean.repeat(2, 1))
    warm = fake_state(DUA(), rows=2, channels=3, updates=2)
    torch.testing.assert_close(
        warm.scalars["dua_momentum"], 0.1 * 0.94**warm.updates, rtol=1e-12, atol=0
    )
    assert warm.moments.count.eq(0).all()
    assert fake_state(Welford(), updates=1).moments.count.gt(0).all()
    assert warm.aside is None
    seen = fake_observation(rows=2, channels=3, positions=4.0)
    assert torch.equal(seen.moments.count, seen.frames * torch.full((3,), 4.0).double())
    assert isinstance(seen.moments, Moments)


def test_a_fake_state_has_been_through_the_settling_passes_that_it_asked_for() -> None:
    estimator = Aside()
    fresh = fake_state(estimator, rows=2, channels=3)
    assert fresh.aside is not None and fresh.aside.count.eq(0).all()
    assert torch.equal(fresh.aside.mean, fresh.moments.mean)
    assert torch.equal(fresh.aside.var, fresh.moments.var)
    assert fake_state(Restarting(level=0.5)).scalars["level"].eq(0.5).all()
    assert fresh.scalars["place"].eq(0).all()
    warm = fake_state(estimator, rows=2, channels=3, updates=1)
    assert warm.scalars["place"].eq(1).all()  # a pass came after the first step
    assert warm.updates.flatten().tolist() == [1.0, 2.0]  # and is no step of its own
    observed = fake_observation(rows=2, channels=3, seed=1000)
    both = fresh.moments.blend(observed.moments, 0.5).blend(observed.moments, 0.5)
    assert torch.equal(warm.moments.mean[0], both.mean[0])
    assert torch.equal(warm.frames[0], observed.frames[0])
