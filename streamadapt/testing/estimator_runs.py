"""Laws of an estimator at work: in a bank's transaction, and in a processor's steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from streamadapt.bank import BankLayout, RowState, StatisticsBank
from streamadapt.estimators import Estimator, Observation
from streamadapt.estimators.base import Timing
from streamadapt.events import Event, FramesRejected, UpdateFailed, UpdateRefused
from streamadapt.moments import Moments
from streamadapt.processor import StreamProcessor
from streamadapt.testing.examples import Law, Trial, rows_seen, with_row
from streamadapt.testing.fakes import fake_observation, fake_state, frames, tiny_model

_STEPS = 8


def absent_streams_stay_as_they_are(trial: Trial) -> Iterator[str]:
    """A row without frames keeps every bit, whatever stands where its moments would be."""
    for junk in (0.0, float("nan")):
        bank, estimator = _bank(trial)
        observed = _observation(trial, bank)
        _commit(bank, estimator, observed)
        before = bank.capture(range(trial.rows))
        expected = _committed_twin(bank, estimator, observed)
        row = torch.arange(trial.rows).unsqueeze(1) == 0
        values = Moments(
            torch.where(row, 0.0, observed.moments.count),
            torch.where(row, junk, observed.moments.mean),
            torch.where(row, junk, observed.moments.var),
        )
        present = torch.where(row, 0.0, observed.frames)
        _commit(bank, estimator, replace(observed, moments=values, frames=present))
        if not _same(bank.capture([0]), before.take([0])):
            yield f"a row without frames changed (its moments were {junk:g})"
        others = range(1, trial.rows)
        if not _same(bank.capture(others), expected.take(others)):
            yield f"a row without frames (its moments were {junk:g}) changed the other rows"


def layers_that_did_not_run_stay_as_they_are(trial: Trial) -> Iterator[str]:
    """A layer without positions keeps every bit of mean, variance and count; the rest moves on."""
    for updates in (0, 1):
        bank, estimator = _bank(trial)
        for number in range(updates):
            _commit(bank, estimator, _observation(trial, bank, number))
        before = bank.capture(range(trial.rows))
        observed = _observation(trial, bank, updates)
        expected = _committed_twin(bank, estimator, observed)
        seen = bank.layout.per_channel(torch.tensor([True, False]))
        nothing = torch.where(seen, observed.moments.count, 0.0)
        silent = replace(observed, moments=replace(observed.moments, count=nothing))
        _commit(bank, estimator, silent, seen=seen)
        after = bank.capture(range(trial.rows))
        ran, idle = (layer.span for layer in bank.layout.layers)
        if not torch.equal(after.data[:, :, idle], before.data[:, :, idle]):
            yield "the statistics of a layer that did not run changed"
        if not torch.equal(after.counts[:, 1], before.counts[:, 1]):
            yield "the count of a layer that did not run changed"
        if not torch.equal(after.data[:, :, ran], expected.data[:, :, ran]):
            yield "a layer that did not run changed another one"
        if not bool(torch.isfinite(after.scalars).all()):
            yield "a layer that did not run made a scalar that is not finite"


def no_row_takes_a_value_that_is_not_finite(trial: Trial) -> Iterator[str]:
    """Whatever one row shows, the bank stays finite and the other rows' updates go through."""
    for bad in (float("nan"), float("inf"), 1e200):
        bank, estimator = _bank(trial)
        observed = _observation(trial, bank)
        expected = _committed_twin(bank, estimator, observed)
        junk = replace(
            observed,
            moments=Moments(
                observed.moments.count,
                torch.full_like(observed.moments.mean, bad),
                torch.full_like(observed.moments.var, abs(bad)),
            ),
        )
        mixed = observed
        for row in range(1, trial.rows):
            mixed = with_row(observed, row, mixed)
        mixed = with_row(junk, 0, mixed)
        _commit(bank, estimator, mixed)
        saved = bank.capture(range(trial.rows))
        for name in ("data", "counts", "scalars"):
            if not bool(torch.isfinite(getattr(saved, name)).all()):
                yield f"after moments of {bad:g}, the bank's {name} are not finite"
        others = range(1, trial.rows)
        if not _same(saved.take(others), expected.take(others)):
            yield f"moments of {bad:g} in one row changed the others"


def every_declared_timing_works(trial: Trial) -> Iterator[str]:
    """A wrapped model runs, stays finite, keeps streams apart, and is given back bit-exactly."""
    for timing in sorted(trial.make().timings):
        for streams in (1, 2):
            where = f"in {timing} timing with {streams} stream{'s' * (streams > 1)}"
            outputs, values, trouble = _run(trial, timing, streams, other_offset=0.0)
            if trouble:
                yield f"{trouble[0]} {where}"
            for tensor in (*outputs, *values):
                if not bool(torch.isfinite(tensor).all()):
                    yield f"an output or a statistic is not finite {where}"
            if timing == "lagged" and not torch.equal(
                outputs[0], tiny_model(seed=trial.seed)(_batch(trial, 0))
            ):
                pass
        first, second = (
            _run(trial, timing, 2, other_offset=offset)[1] for offset in (0.0, 5.0)
        )
        if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
            yield f"a stream's statistics change with another's frames in {timing} timing"
