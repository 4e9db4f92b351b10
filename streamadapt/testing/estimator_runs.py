"""Laws of an estimator at work: in a bank's transaction, and in a processor's steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from streamadapt.bank import RowState, StatisticsBank
from streamadapt.estimators import Estimator, Observation
from streamadapt.estimators.base import Timing
from streamadapt.events import (
    Event,
    FramesRejected,
    SettlingFailed,
    UpdateFailed,
    UpdateRefused,
)
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments
from streamadapt.processor import StreamProcessor
from streamadapt.testing.examples import Law, Trial, with_row
from streamadapt.testing.fakes import (
    fake_observation,
    fake_state,
    frames,
    settling_rows,
    tiny_model,
)

_STEPS = 8
_SETTLING_STEPS = 8
_POSITIONS = 4.0


def absent_streams_stay_as_they_are(trial: Trial) -> Iterator[str]:
    """A row without frames keeps every bit, whatever stands where its moments would be."""
    for junk in (0.0, float("nan")):
        bank, estimator = _started_bank(trial)
        before = bank.capture(range(trial.rows))
        observed = _observed(trial, bank, 1)
        expected = _trial_commit(bank, estimator, observed)
        nobody = _filled(observed, count=0.0, value=junk, frames=0.0)
        _commit(bank, estimator, with_row(nobody, 0, observed))
        after = bank.capture(range(trial.rows))
        if not _same(after.take([0]), before.take([0])):
            yield f"a row without frames changed; its moments were {junk:g}"
        others = range(1, trial.rows)
        if not _same(after.take(others), expected.take(others)):
            yield f"a row without frames changed other rows; its moments were {junk:g}"


def layers_that_did_not_run_stay_as_they_are(trial: Trial) -> Iterator[str]:
    """A layer without positions keeps what it has, unless its row is `anew`; others move on."""
    bank, estimator = _started_bank(trial)
    before = bank.capture(range(trial.rows))
    observed = _observed(trial, bank, 1)
    expected = _trial_commit(bank, estimator, observed)
    positions = torch.tensor([_POSITIONS, 0.0], dtype=torch.float64)
    count = observed.frames * bank.layout.per_channel(positions)
    partly = replace(observed, moments=replace(observed.moments, count=count))
    anew = estimator.step(bank.read(range(trial.rows)), replace(partly, layers=bank.layout)).anew
    _commit(bank, estimator, partly, positions=positions)
    after = bank.capture(range(trial.rows))
    ran, idle = (layer.span for layer in bank.layout.layers)
    kept = torch.ones(trial.rows, dtype=torch.bool) if anew is None else ~anew[:, 0]
    if not torch.equal(after.data[kept][:, :, idle], before.data[kept][:, :, idle]):
        yield "the statistics of a layer that did not run changed"
    if not torch.equal(after.counts[:, 1], before.counts[:, 1]):
        yield "the count of a layer that did not run changed"
    if type(estimator).decide is not Estimator.decide:
        return  # what it decides, it decides of the whole row
    if not torch.equal(after.data[:, :, ran], expected.data[:, :, ran]):
        yield "a layer that did not run changed another one"
    if not torch.equal(after.scalars, expected.scalars):
        yield "a layer that did not run changed a scalar"


def no_row_takes_a_value_that_is_not_finite(trial: Trial) -> Iterator[str]:
    """Whatever one row shows, the bank stays finite and the other rows' updates go through."""
    for bad in (float("nan"), float("inf"), 1e200):
        bank, estimator = _started_bank(trial)
        observed = _observed(trial, bank, 1)
        expected = _trial_commit(bank, estimator, observed)
        spoiled = _filled(observed, count=_POSITIONS, value=bad, frames=1.0)
        _commit(bank, estimator, with_row(spoiled, 0, observed))
        after = bank.capture(range(trial.rows))
        for name in ("data", "counts", "scalars"):
            if not bool(torch.isfinite(getattr(after, name)).all()):
                yield f"moments of {bad:g} left {name} in the bank that are not finite"
        others = range(1, trial.rows)
        if not _same(after.take(others), expected.take(others)):
            yield f"moments of {bad:g} in one row changed the others"


def every_declared_timing_works(trial: Trial) -> Iterator[str]:
    """A wrapped model answers, its statistics stay finite, and streams do not touch each other."""
    for timing in sorted(trial.make().timings):
        apart = []
        for streams, offset in ((1, 0.0), (2, 0.0), (2, 5.0)):
            where = f"in {timing} timing with max_streams={streams}"
            numbers, trouble = _run(trial, timing, streams, offset=offset)
            if trouble:
                yield f"{trouble[0]!r} {where}"
            if not all(bool(torch.isfinite(tensor).all()) for tensor in numbers):
                yield f"an output or a statistic is not finite {where}"
            if streams == 2:
                apart.append(numbers)
        if not all(torch.equal(one, other) for one, other in zip(*apart, strict=True)):
            yield f"a stream's results change with another stream's frames in {timing} timing"


RUN_LAWS: tuple[Law, ...] = (
    absent_streams_stay_as_they_are,
    layers_that_did_not_run_stay_as_they_are,
    no_row_takes_a_value_that_is_not_finite,
    every_declared_timing_works,
)


def _started_bank(trial: Trial) -> tuple[StatisticsBank, Estimator]:
    """A bank of two layers whose rows have been updated; those with phases are past settling."""
    estimator = trial.make()
    widths = {"first": trial.channels - trial.channels // 2, "second": trial.channels // 2}
    source = fake_state(estimator, channels=trial.channels, seed=trial.seed).source
    means, variances = (t.split(list(widths.values())) for t in (source.mean, source.var))
    bank = StatisticsBank(
        BankLayout([(name, width, 1e-5) for name, width in widths.items()]),
        rows=trial.rows,
        source=list(zip(means, variances, strict=True)),
        device=torch.device("cpu"),
        compensated=estimator.compensated,
        counted=estimator.counted,
        scalars=estimator.scalars,
        aside=estimator.aside,
    )
    _commit(bank, estimator, _observed(trial, bank, 0))
    for number in range(_SETTLING_STEPS):
        due = settling_rows(estimator, bank.read(range(bank.rows)))
        if due is None or not bool(due.any()):
            break
        _commit(bank, estimator, _observed(trial, bank, 2 + number))
    return bank, estimator


def _observed(trial: Trial, bank: StatisticsBank, number: int) -> Observation:
    return fake_observation(
        rows=trial.rows,
        channels=bank.layout.padded_channels,
        seed=trial.seed + 200 + number,
        positions=_POSITIONS,
    )


def _filled(like: Observation, *, count: float, value: float, frames: float) -> Observation:
    """An observation with the same numbers everywhere."""
    mean = torch.full_like(like.moments.mean, value)
    moments = Moments(torch.full_like(mean, count), mean, mean.abs())
    return replace(like, moments=moments, frames=torch.full_like(like.frames, frames))


def _commit(
    bank: StatisticsBank,
    estimator: Estimator,
    observed: Observation,
    *,
    positions: Tensor | None = None,
) -> None:
    """A step, with a settling pass over the rows that are due for one."""
    if positions is None:
        positions = torch.full((len(bank.layout.layers),), _POSITIONS, dtype=torch.float64)
    rows = range(bank.rows)
    observed = replace(observed, layers=bank.layout)
    for again in (False, True):
        if again:
            due = settling_rows(estimator, bank.read(rows))
            if due is None:
                return
            moments = replace(observed.moments, count=observed.moments.count * due)
            observed = replace(
                observed,
                moments=moments,
                frames=observed.frames * due,
                settling=True,
            )
        with torch.no_grad():
            bank.commit(
                rows,
                estimator.step(bank.read(rows), observed),
                frames=observed.frames,
                positions=positions,
                unobserved=bool((positions == 0).any()),
                again=again,
            )


def _trial_commit(bank: StatisticsBank, estimator: Estimator, observed: Observation) -> RowState:
    """What a commit would leave; the bank is as before."""
    rows = range(bank.rows)
    before = bank.capture(rows)
    _commit(bank, estimator, observed)
    result = bank.capture(rows)
    bank.restore(rows, before)
    return result


def _same(one: RowState, other: RowState) -> bool:
    names = ("data", "counts", "frames", "updates", "scalars")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def _run(
    trial: Trial, timing: Timing, streams: int, *, offset: float
) -> tuple[list[Tensor], list[Event]]:
    """Outputs and statistics of the first stream, and events that tell of trouble.

    Args:
        trial: makes the estimator.
        timing: as in the processor.
        streams: 1 or 2; with 2, every other frame is the second stream's.
        offset: added to the second stream's frames.
    """
    trouble: list[Event] = []
    bad = (UpdateFailed, UpdateRefused, FramesRejected, SettlingFailed)
    second = torch.arange(4) % streams == 1
    numbers: list[Tensor] = []
    with (
        torch.no_grad(),
        StreamProcessor(
            tiny_model(seed=trial.seed),
            estimator=trial.make(),
            timing=timing,
            max_streams=streams,
            on_event=lambda event: trouble.append(event) if isinstance(event, bad) else None,
        ) as processor,
    ):
        for step in range(_STEPS):
            batch = frames(4, seed=trial.seed + step, gain=2.0)
            batch[second] += offset
            output = processor(
                batch,
                streams=["second" if other else "first" for other in second.tolist()],
                pts_seconds=[step + 0.25 * index for index in range(4)],
            )
            numbers.append(output[~second])
        for moments in processor.statistics("first").values():
            numbers += [moments.mean, moments.var]
    return numbers, trouble
