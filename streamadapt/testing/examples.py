"""States and observations for the laws: changed in ways whose effect is known, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamadapt.bank import State
from streamadapt.estimators import Estimator, Observation
from streamadapt.moments import Moments
from streamadapt.testing.fakes import fake_observation, fake_state, settling_rows

_TOLERANCE = 1e-9  # float64, with room for a sum in another order


@dataclass(frozen=True)
class Trial:
    """What a law is tried on: where the estimator comes from, and the size of the examples."""

    make: Callable[[], Estimator]
    seed: int
    rows: int
    channels: int

    @property
    def counted(self) -> bool:
        """Whether counts are part of the estimator's result."""
        return self.make().counted

    def unequal(self, new: State, wanted: State) -> Iterator[str]:
        """Names of results that are not equal to the bit."""
        for name, got, expected in self._pairs(new, wanted):
            if not torch.equal(got, expected):
                yield f"`{name}`"

    def different(self, new: State, wanted: State) -> Iterator[str]:
        """Names of results that differ by more than rounding, with by how much."""
        for name, got, expected in self._pairs(new, wanted):
            if not torch.allclose(got, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                yield f"`{name}` (by up to {(got - expected).abs().max().item():.3g})"

    def _pairs(self, new: State, wanted: State) -> Iterator[tuple[str, Tensor, Tensor]]:
        counted = self.counted
        for (name, got), (_, expected) in zip(results(new), results(wanted), strict=True):
            if counted or name != "count":
                yield name, got, expected

    def cases(self, estimator: Estimator) -> Iterator[tuple[State, Observation]]:
        """On the source, then after several updates; each with the same observation.

        An estimator with phases is tried after more updates as well, and sees settling passes, with
        answers that say less in every other row and without a word about them.
        """
        phases = settling_rows(estimator, self._state(estimator, 0)) is not None
        for updates in (0, 2, *((5, 8) if phases else ())):
            state = self._state(estimator, updates)
            yield state, self.observation()
            if phases:
                passed = replace(self.observation(), settling=True)
                yield state, passed
                some = torch.arange(self.rows, dtype=torch.float64).unsqueeze(1) % 2.0
                yield state, replace(passed, healthy=some)

    def _state(self, estimator: Estimator, updates: int) -> State:
        return fake_state(
            estimator, rows=self.rows, channels=self.channels, seed=self.seed, updates=updates
        )

    def rules(self, estimator: Estimator) -> tuple[Rule, ...]:
        """`update`, as a synchronous forward calls it, and the whole step where that does more."""
        if type(estimator).decide is Estimator.decide:
            return (estimator.update,)
        return estimator.update, estimator.step

    def observation(self, number: int = 0, *, positions: float | None = None) -> Observation:
        """One of many, each with its own number."""
        return fake_observation(
            rows=self.rows,
            channels=self.channels,
            seed=self.seed + 100 + number,
            positions=positions,
        )


Rule = Callable[[State, Observation], State]
Law = Callable[[Trial], Iterator[str]]
"""Yields what is wrong; nothing when the law is kept. Its name, in words, is the law's."""


def extremes(
    state: State, seen: Observation, trial: Trial
) -> Iterator[tuple[str, State, Observation]]:
    """Finite inputs at the ends of their range, each with a description."""
    ones = torch.ones_like(seen.moments.count)
    flat = replace(seen.moments, var=torch.zeros_like(ones))
    single = replace(seen, frames=torch.ones_like(seen.frames))
    yield "ordinary values", state, seen
    for what, var in (("one value", seen.moments.var), ("one value, variance 0", flat.var)):
        lone = replace(single, moments=Moments(ones, seen.moments.mean, var))
        yield f"a batch of {what}", state, lone
    yield "constant channels", state, replace(seen, moments=flat)
    yield "constant channels in state and batch", *moved(state, seen, factor=0.0)
    for factor in (1e-30, 1e15):
        old, new = moved(state, seen, factor=factor)
        yield f"everything scaled by {factor:g}", old, new
        yield f"a batch scaled by {factor:g}", state, new
        yield f"a state scaled by {factor:g}", old, seen
    yield "means 1e6 sigma from zero", *moved(state, seen, offset=1e6)
    if trial.counted:
        many = replace(state.moments, count=torch.full_like(ones, 2.0**50))
        yield "a count of 2**50", replace(state, moments=many), seen
    for seconds in (0.0, 1e9):
        elapsed = torch.full_like(seen.elapsed_seconds, seconds)
        yield f"{seconds:g} s since the last frames", state, replace(seen, elapsed_seconds=elapsed)


def moved(
    state: State, observed: Observation, *, factor: float = 1.0, offset: float = 0.0
) -> tuple[State, Observation]:
    """What the same streams would have given with every input `x` replaced by `factor x + offset`.

    With `factor=0.0` all channels are constant.
    """
    return (
        replace(
            estimates_moved(state, factor=factor, offset=offset),
            source=affine(state.source, factor, offset),
        ),
        replace(observed, moments=affine(observed.moments, factor, offset)),
    )


def estimates_moved(state: State, *, factor: float = 1.0, offset: float = 0.0) -> State:
    """A state whose own moments are those of `factor x + offset`."""
    aside = None if state.aside is None else affine(state.aside, factor, offset)
    return replace(state, moments=affine(state.moments, factor, offset), aside=aside)


def affine(moments: Moments, factor: float, offset: float) -> Moments:
    """Moments of `factor x + offset`."""
    return Moments(moments.count, factor * moments.mean + offset, factor**2 * moments.var)


def fields(moments: Moments) -> Iterator[tuple[str, Tensor]]:
    """The three tensors and their names."""
    yield from (("count", moments.count), ("mean", moments.mean), ("var", moments.var))


def results(state: State) -> Iterator[tuple[str, Tensor]]:
    """What an update decides: moments, those aside without their count, and scalars."""
    yield from fields(state.moments)
    if state.aside is not None:
        yield from (("aside.mean", state.aside.mean), ("aside.var", state.aside.var))
    yield from sorted(state.scalars.items())


def arguments(state: State, observed: Observation) -> dict[str, Tensor]:
    """Every tensor that an update is given, by where it stands."""
    named = {f"state.moments.{name}": tensor for name, tensor in fields(state.moments)}
    named |= {f"state.source.{name}": tensor for name, tensor in fields(state.source)}
    if state.aside is not None:
        named |= {f"state.aside.{name}": tensor for name, tensor in fields(state.aside)}
    named |= {f"state.scalars[{name!r}]": tensor for name, tensor in state.scalars.items()}
    named |= {f"observed.moments.{name}": tensor for name, tensor in fields(observed.moments)}
    if observed.healthy is not None:
        named["observed.healthy"] = observed.healthy
    return named | {
        "state.frames": state.frames,
        "state.updates": state.updates,
        "observed.frames": observed.frames,
        "observed.elapsed_seconds": observed.elapsed_seconds,
    }


def channels_of(state: State, index: Tensor) -> State:
    """Some channels of a state."""
    return replace(
        state,
        moments=_picked(state.moments, index, -1),
        source=_picked(state.source, index, -1),
        aside=None if state.aside is None else _picked(state.aside, index, -1),
    )


def channels_seen(observed: Observation, index: Tensor) -> Observation:
    """Some channels of an observation."""
    return replace(observed, moments=_picked(observed.moments, index, -1))


def rows_of(state: State, index: Tensor) -> State:
    """Some rows of a state; a row may be taken several times."""
    aside = state.aside
    return replace(
        state,
        moments=_picked(state.moments, index, 0),
        # The count aside means nothing, and need not have rows.
        aside=None
        if aside is None
        else replace(aside, mean=aside.mean[index], var=aside.var[index]),
        frames=state.frames[index],
        updates=state.updates[index],
        scalars={name: tensor[index] for name, tensor in state.scalars.items()},
    )


def rows_seen(observed: Observation, index: Tensor) -> Observation:
    """Some rows of an observation."""
    return replace(
        observed,
        moments=_picked(observed.moments, index, 0),
        frames=observed.frames[index],
        elapsed_seconds=observed.elapsed_seconds[index],
        healthy=None if observed.healthy is None else observed.healthy[index],
    )


def with_row(observed: Observation, row: int, other: Observation) -> Observation:
    """`other`, but with one row of `observed`; both of the same kind of step."""
    own = torch.arange(observed.frames.shape[0]).unsqueeze(1) == row
    mixed = [
        torch.where(own, mine, theirs)
        for (_, mine), (_, theirs) in zip(
            fields(observed.moments), fields(other.moments), strict=True
        )
    ]
    healthy = observed.healthy
    if healthy is not None:
        theirs = 1.0 - healthy if other.healthy is None else other.healthy
        healthy = torch.where(own, healthy, theirs)
    return replace(
        observed,
        moments=Moments(*mixed),
        frames=torch.where(own, observed.frames, other.frames),
        elapsed_seconds=torch.where(own, observed.elapsed_seconds, other.elapsed_seconds),
        healthy=healthy,
    )


def _picked(moments: Moments, index: Tensor, dim: int) -> Moments:
    return Moments(*(tensor.index_select(dim, index) for _, tensor in fields(moments)))
