"""Every law that an estimator must keep, as one call for a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import Estimator
from streamadapt.estimators.base import PHASES
from streamadapt.testing.estimator_runs import RUN_LAWS
from streamadapt.testing.examples import (
    Law,
    Trial,
    arguments,
    channels_of,
    channels_seen,
    estimates_moved,
    extremes,
    moved,
    results,
    rows_of,
    rows_seen,
    with_row,
)
from streamadapt.testing.fakes import fake_state


def check_estimator(
    estimator: Estimator | Callable[[], Estimator],
    *,
    seed: int = 0,
    rows: int = 3,
    channels: int = 6,
) -> None:
    """Tells whether the runtime can rely on an estimator, and which law it breaks if not.

    The laws: it is a pure function of its arguments; results have the shape, dtype and scalars
    that it declares, and rows are in phases that there are; they are finite, with variances of at
    least zero, for any finite input; `update` treats channels alike and rows never mix; scaling or
    shifting a layer's input scales or shifts the statistics; camera time and counts matter only
    where declared. In a `StatisticsBank`, absent streams and layers that did not run stay as they
    are to the bit, and a proposal that is not finite reaches no row. In a `StreamProcessor` it
    works in every timing that it declares.

    Args:
        estimator: one, or what makes one, such as its class.
        seed: fixes the examples.
        rows: streams in an example, at least 2.
        channels: channels in an example, at least 2.

    Raises:
        AssertionError: names the estimator, the law, and what came out instead.
        ConfigurationError: too few rows or channels to tell anything.

    Example:
        >>> from streamadapt.estimators import EMA
        >>> check_estimator(EMA(momentum=0.1))
    """
    if rows < 2 or channels < 2:
        raise ConfigurationError(
            f"`rows` and `channels` must be at least 2, got {rows} and {channels}: with one there "
            "is nothing to mix up."
        )
    if isinstance(estimator, Estimator):
        only = estimator
        trial = Trial(lambda: only, seed, rows, channels)
    else:
        trial = Trial(estimator, seed, rows, channels)
    for law in (*UPDATE_LAWS, *RUN_LAWS):
        _enforce(law, trial)


def _enforce(law: Law, trial: Trial) -> None:
    broken = f"breaks the law `{law.__name__.replace('_', ' ')}`"
    try:
        complaint = next(law(trial), None)
    except Exception as error:
        raise AssertionError(
            f"{trial.make()!r} {broken}: it raised {type(error).__name__}: {error}"
        ) from error
    if complaint is not None:
        raise AssertionError(f"{trial.make()!r} {broken}: {complaint}.")


def declarations_make_sense(trial: Trial) -> Iterator[str]:
    """Class attributes are what the runtime reads, and the repr tells estimators apart."""
    estimator = trial.make()
    if not estimator.timings or not estimator.timings <= {"lagged", "synchronous"}:
        yield f"`timings` is {sorted(estimator.timings)}"
    for name, value in estimator.scalars.items():
        if not math.isfinite(value):
            yield f"scalar {name!r} starts at {value}"
    start = fake_state(estimator, rows=trial.rows, channels=trial.channels)
    phase = estimator.phase(start.scalars)
    if phase is not None and (phase.shape, phase.dtype) != (start.frames.shape, torch.float64):
        yield f"`phase` is {list(phase.shape)} {phase.dtype} instead of a float64 for each row"
    shown = repr(estimator)
    if type(estimator).__name__ not in shown or " at 0x" in shown or "\n" in shown:
        yield "its repr must be one line, with the class name and the settings"


def results_have_the_declared_form(trial: Trial) -> Iterator[str]:
    """Moments `[rows, channels]` and scalars `[rows, 1]`, float64; the scalars it declares."""
    estimator = trial.make()
    for state, observed in trial.cases(estimator):
        for rule in trial.rules(estimator):
            new = rule(state, observed)
            if not isinstance(new, State):
                yield f"it returned {type(new).__name__} instead of State"
            if set(new.scalars) != set(estimator.scalars):
                yield (
                    f"declared scalars {sorted(estimator.scalars)}, returned {sorted(new.scalars)}"
                )
            if (new.aside is not None) != estimator.aside:
                yield f"`aside` is {new.aside}, declared {estimator.aside}"
            shapes = dict.fromkeys(new.scalars, state.frames.shape)
            whole = ("count", "mean", "var", "aside.mean", "aside.var")
            shapes |= dict.fromkeys(whole, state.moments.mean.shape)
            for name, tensor in results(new):
                if tensor.shape != shapes[name]:
                    yield f"`{name}` is {list(tensor.shape)} instead of {list(shapes[name])}"
                if tensor.dtype != torch.float64:
                    yield f"`{name}` is {tensor.dtype} instead of torch.float64"


def phases_are_known_ones(trial: Trial) -> Iterator[str]:
    """Every row is in one of `PHASES`, before and after each step."""
    estimator = trial.make()
    for state, observed in trial.cases(estimator):
        for scalars in (state.scalars, estimator.step(state, observed).scalars):
            phase = estimator.phase(scalars)
            known = torch.arange(float(len(PHASES)), dtype=torch.float64)
            if phase is not None and not bool(torch.isin(phase, known).all()):
                yield f"phases are {phase.flatten().tolist()}, known are {known.tolist()}"


def results_are_finite(trial: Trial) -> Iterator[str]:
    """For any finite input: constant channels, one value, vast and tiny scales, a long pause."""
    estimator = trial.make()
    for state, seen in trial.cases(estimator):
        for what, old, observed in extremes(state, seen, trial):
            for rule in trial.rules(estimator):
                new = rule(old, observed)
                for name, tensor in results(new):
                    if not bool(torch.isfinite(tensor).all()):
                        yield f"`{name}` is not finite with {what}"
                    if name in ("count", "var", "aside.var") and bool((tensor < 0).any()):
                        yield f"`{name}` is {tensor.min().item():.3g} with {what}"


def arguments_are_left_alone(trial: Trial) -> Iterator[str]:
    """`update` and `decide` write to no tensor that they are given."""
    estimator = trial.make()
    for state, observed in trial.cases(estimator):
        before = {name: tensor.clone() for name, tensor in arguments(state, observed).items()}
        estimator.step(state, observed)
        after = arguments(state, observed)
        if after.keys() != before.keys():
            yield f"scalars were added or removed: {sorted(after.keys() ^ before.keys())}"
        for name, tensor in before.items():
            if not torch.equal(tensor, after[name]):
                yield f"`{name}` was modified"


def the_same_input_gives_the_same_result(trial: Trial) -> Iterator[str]:
    """To the bit, whatever was updated in between, and by another instance as well."""
    estimator = trial.make()
    for state, observed in trial.cases(estimator):
        first = estimator.step(state, observed)
        estimator.step(state, trial.observation(1))
        for again in (estimator, trial.make()):
            for name in trial.unequal(again.step(state, observed), first):
                yield f"{name} came out differently a second time"


def channels_are_treated_alike(trial: Trial) -> Iterator[str]:
    """A slice or a permutation of the channels gives that of the result of `update`."""
    estimator = trial.make()
    generator = torch.Generator().manual_seed(trial.seed)
    shuffled = torch.randperm(trial.channels, generator=generator)
    for state, observed in trial.cases(estimator):
        whole = estimator.update(state, observed)
        for what, kept in (
            ("for one channel alone", shuffled[:1]),
            ("for some channels alone", torch.arange(1, trial.channels)),
            ("when channels are permuted", shuffled),
        ):
            new = estimator.update(channels_of(state, kept), channels_seen(observed, kept))
            for name in trial.different(new, channels_of(whole, kept)):
                yield f"{name} is another {what}"


def rows_do_not_mix(trial: Trial) -> Iterator[str]:
    """A row's result depends on no other row."""
    estimator = trial.make()
    for state, observed in trial.cases(estimator):
        for rule in trial.rules(estimator):
            whole = rule(state, observed)
            for row in range(trial.rows):
                own = torch.tensor([row])
                wanted = rows_of(whole, own)
                crowd = rule(
                    rows_of(state, own.expand(trial.rows)),
                    with_row(observed, row, trial.observation(1)),
                )
                for name in trial.unequal(rows_of(crowd, own), wanted):
                    yield f"{name} changes with another row's values"
                for name in trial.different(
                    rule(rows_of(state, own), rows_seen(observed, own)), wanted
                ):
                    yield f"{name} is another when the row is alone"


def scaling_the_input_scales_the_statistics(trial: Trial) -> Iterator[str]:
    """`x -> c x` gives `c mean` and `c**2 var`, for negative `c` as well."""
    estimator = trial.make()
    for state, observed in trial.cases(estimator):
        for rule in trial.rules(estimator):
            plain = rule(state, observed)
            for factor in (8.0, -0.25):
                new = rule(*moved(state, observed, factor=factor))
                back = estimates_moved(new, factor=1.0 / factor)
                for name in trial.different(back, plain):
                    yield f"{name} does not follow a factor of {factor:g}"


def shifting_the_input_shifts_the_mean_alone(trial: Trial) -> Iterator[str]:
    """`x -> x + s` gives `mean + s` and the same variance."""
    estimator = trial.make()
    for state, observed in trial.cases(estimator):
        for rule in trial.rules(estimator):
            plain = rule(state, observed)
            for offset in (3.0, -20.0):
                new = rule(*moved(state, observed, offset=offset))
                back = estimates_moved(new, offset=-offset)
                for name in trial.different(back, plain):
                    yield f"{name} does not follow an offset of {offset:g}"


def camera_time_matters_where_declared(trial: Trial) -> Iterator[str]:
    """Without `uses_time` nobody measures it: one zero stands for all rows."""
    estimator = trial.make()
    if estimator.uses_time:
        return
    for state, observed in trial.cases(estimator):
        nothing = torch.zeros(1, 1, dtype=torch.float64)
        new = estimator.step(state, replace(observed, elapsed_seconds=nothing))
        for name in trial.unequal(new, estimator.step(state, observed)):
            yield f"{name} depends on `elapsed_seconds`, but `uses_time` is not set"


def counts_matter_where_declared(trial: Trial) -> Iterator[str]:
    """Without `counted` the bank adds them up itself, and shows the estimator zeros."""
    estimator = trial.make()
    if estimator.counted:
        return
    for state, observed in trial.cases(estimator):
        many = replace(state.moments, count=torch.full_like(state.moments.mean, 100.0))
        new = estimator.step(replace(state, moments=many), observed)
        for name in trial.unequal(new, estimator.step(state, observed)):
            yield f"{name} depends on `state.moments.count`, but `counted` is not set"


def rows_that_may_not_move_do_not(trial: Trial) -> Iterator[str]:
    """Where `may_move` says no, `update` leaves the moments of a row as they are, to the bit."""
    estimator = trial.make()
    for state, observed in trial.cases(estimator):
        if observed.settling:
            continue
        moves = estimator.may_move(state.scalars, observed.frames, observed.elapsed_seconds)
        if moves is None:
            continue
        new, still = estimator.update(state, observed).moments, ~moves
        for name in ("mean", "var"):
            before, after = getattr(state.moments, name), getattr(new, name)
            if not torch.equal(torch.where(still, after, 0.0), torch.where(still, before, 0.0)):
                yield f"`{name}` of a row moved that `may_move` says stays"


UPDATE_LAWS: tuple[Law, ...] = (
    declarations_make_sense,
    results_have_the_declared_form,
    phases_are_known_ones,
    results_are_finite,
    arguments_are_left_alone,
    the_same_input_gives_the_same_result,
    channels_are_treated_alike,
    rows_do_not_mix,
    scaling_the_input_scales_the_statistics,
    shifting_the_input_shifts_the_mean_alone,
    camera_time_matters_where_declared,
    counts_matter_where_declared,
    rows_that_may_not_move_do_not,
)
