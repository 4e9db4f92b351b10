"""Variants timed in turn, each between two steps of the frozen model."""

from __future__ import annotations

import copy
import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.overhead.baselines import eager, warm
from benchmarks.overhead.configurations import (
    BATCHES,
    Build,
    Configuration,
    Forward,
    NotAvailableError,
    Setting,
    Variant,
    reason,
    set_up,
)
from benchmarks.overhead.variants import AGAIN, ONE_STREAM
from benchmarks.record import paired_ratios

LEAST_ROUNDS = 5
REFERENCE = "frozen, eager"


class Timer:
    """Seconds of each step of a burst, on the CPU by the wall clock, on CUDA by device events."""

    def __init__(self, device: torch.device, *, burst: int | None = None) -> None:
        self._cuda = device.type == "cuda"
        self.burst = burst or (4 if self._cuda else 1)

    def __call__(self, forward: Forward, batches: Sequence[Tensor]) -> list[float]:
        """Run one burst."""
        if not self._cuda:
            marks = [time.perf_counter()]
            for index in range(self.burst):
                forward(batches[index % len(batches)])
                marks.append(time.perf_counter())
            return [later - earlier for earlier, later in pairwise(marks)]
        torch.cuda.synchronize()
        events = []
        forward(batches[0])  # not counted: it fills the queue
        for index in range(self.burst + 1):
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
            events.append(mark)
            if index < self.burst:
                forward(batches[index % len(batches)])
        torch.cuda.synchronize()
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairwise(events)]


class _TimeUpError(BaseException):
    """Not an `Exception`: compilers try kernels out, and go on when one raises."""


class Budget:
    """Time that a run has, and what building took so far.

    Args:
        minutes: None: as much as it takes.
    """

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._took: dict[str, float] = {}

    def spent(self) -> bool:
        """Whether it is used up."""
        return self._end is not None and time.monotonic() >= self._end

    def left(self) -> float | None:
        """Seconds until it is used up; None: no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def has_room(self, name: str, variant: Variant) -> bool:
        """Whether a variant can still be built, going by what it took before."""
        if self._end is None:
            return True
        needed = self._took.get(name, variant.costly_seconds)
        return time.monotonic() + needed < self._end

    @contextmanager
    def limit(self, variant: Variant) -> Iterator[None]:
        """Stops a costly build when the time is used up: some compilers take as long as they like.

        Raises:
            NotAvailableError: it was stopped.
        """
        if self._end is None or not variant.costly_seconds or not hasattr(signal, "setitimer"):
            yield
            return

        def stop(*_: Any) -> None:
            raise _TimeUpError

        before = signal.signal(signal.SIGALRM, stop)
        try:
            # Again and again, in case something on the way holds it up.
            signal.setitimer(signal.ITIMER_REAL, max(0.01, self._end - time.monotonic()), 5.0)
            yield
        except _TimeUpError:
            raise NotAvailableError("building it took longer than there was time") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def took(self, name: str, seconds: float) -> None:
        """What building a variant took; the longest time counts."""
        self._took[name] = max(seconds, self._took.get(name, 0.0))


class Run(Protocol):
    """A variant that is ready to be timed."""

    def __call__(self, start: int) -> list[float]:
        """Seconds of each counted step of a run; `start`: which batch comes first."""
        ...

    def phases(self) -> dict[str, int]:
        """How many cameras are in each of the estimator's phases, at the end."""
        ...


Start = Callable[[str, Build], Run]
"""Builds a variant, by its name, and makes it ready."""

Place = Callable[[Configuration, ExitStack, Budget], Start]
"""Where the variants of a configuration run: in one process, or each in its own."""


class Together:
    """All variants in this process.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, configuration: Configuration, stack: ExitStack, budget: Budget) -> Start:
        """Sets a configuration up."""
        base, setting = set_up(configuration, self._device, stack)
        stack.enter_context(torch.inference_mode())
        return lambda name, build: _Here(build(_copy(base), setting), setting)


class _Here:
    def __init__(self, forward: Forward, setting: Setting) -> None:
        self._forward = warm(forward, setting)
        self._timer = Timer(setting.device)
        self._batches = setting.batches

    def __call__(self, start: int) -> list[float]:
        return self._timer(self._forward, self._batches[start:] + self._batches[:start])

    def phases(self) -> dict[str, int]:
        found: dict[str, int] = getattr(self._forward, "phases", dict)()
        return found


def measure(
    configuration: Configuration,
    chosen: Mapping[str, Variant],
    *,
    place: Place,
    rounds: int,
    budget: Budget,
    left_out: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Every variant in one configuration, interleaved.

    Args:
        configuration: what to measure.
        chosen: the variants, by name.
        place: where they run.
        rounds: how often each variant runs; fewer where the budget ends before.
        budget: of time.
        left_out: variants that are not to be built, and why.

    Returns:
        A row of plain values for each variant, with `not_available` instead of times where it
        could not be built. `failed` is true where that was not to be expected.
    """
    with ExitStack() as stack:
        start = place(configuration, stack, budget)
        reference = start(REFERENCE, eager)
        built, missing = _build(start, chosen, budget, left_out or {})
        gc.collect()
        seconds, before, after = _rounds(reference, built, rounds, budget)
        phases = {name: one.phases() for name, one in built.items()}
    rows = []
    for name, variant in chosen.items():
        row: dict[str, Any] = {**asdict(configuration), "variant": name, "kind": variant.kind}
        if name in missing:
            rows.append({**row, **missing[name]})
            continue
        means = [np.mean(one) for one in seconds[name]]
        row["ratio"] = asdict(paired_ratios(means, before[name], after[name]))
        row["step_seconds"] = {
            "p50": float(np.quantile(seconds[name], 0.5)),
            "p99": float(np.quantile(seconds[name], 0.99)),
            "steps": int(np.size(seconds[name])),
        }
        if phases[name]:
            row["phases"] = phases[name]
        rows.append(row)
    relative = {
        name: np.array([np.mean(one) for one in seconds[name]])
        / ((np.array(before[name]) + np.array(after[name])) / 2)
        for name in built
    }
    compare(rows, relative)
    return rows


def compare(rows: Sequence[dict[str, Any]], relative: Mapping[str, Any]) -> None:
    """Add to rows how they compare with the fastest frozen deployment, and with one stream.

    Round by round: what is compared are times over those of the frozen model just before and
    after, so that neither a slow minute nor another order of the variants is part of it.

    Args:
        rows: of one configuration; `over_best_frozen` and `over_one_stream` are added to them.
        relative: time over the reference's in each round, `[rounds]`, by variant.
    """
    frozen = {
        row["variant"]: float(np.median(relative[row["variant"]]))
        for row in rows
        if row["kind"] == "frozen" and row["variant"] in relative and row["variant"] != AGAIN
    }
    best = min(frozen, key=lambda name: frozen[name], default=None)
    if best is None or frozen[best] > 1.0:
        best = None  # the reference itself
    for row in rows:
        mine = relative.get(row["variant"])
        if mine is None:
            continue
        theirs = np.ones_like(mine) if best is None else relative[best]
        row["over_best_frozen"] = {"variant": best or REFERENCE, **_spread(mine / theirs)}
        one = relative.get(ONE_STREAM.get(row["variant"], ""))
        if one is not None:
            row["over_one_stream"] = _spread(mine / one)


def _spread(ratios: Any) -> dict[str, Any]:
    ones = np.ones(len(ratios))
    return asdict(paired_ratios(ratios, ones, ones))


def _copy(model: nn.Module) -> nn.Module:
    """One whose parameters can be trained: copies made in inference mode cannot."""
    with torch.inference_mode(False):
        return copy.deepcopy(model)


def _build(
    start: Start,
    chosen: Mapping[str, Variant],
    budget: Budget,
    left_out: Mapping[str, str],
) -> tuple[dict[str, Run], dict[str, dict[str, Any]]]:
    """Variants, and what is said of those that there is none of."""
    built: dict[str, Run] = {}
    missing: dict[str, dict[str, Any]] = {}
    for name, variant in chosen.items():
        if name in left_out:
            missing[name] = {"not_available": left_out[name]}
            continue
        if not budget.has_room(name, variant):
            missing[name] = {"not_available": "no time left"}
            continue
        started = time.monotonic()
        try:
            with budget.limit(variant):
                built[name] = start(name, variant.build)
        except Exception as error:
            # The others' numbers are worth having; the run's exit status tells.
            missing[name] = reason(error)
        budget.took(name, time.monotonic() - started)
    return built, missing


def _rounds(
    reference: Run, built: Mapping[str, Run], rounds: int, budget: Budget
) -> tuple[dict[str, list[list[float]]], dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every variant's steps, and of the reference before and after them."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in built}
    before: dict[str, list[float]] = {name: [] for name in built}
    after: dict[str, list[float]] = {name: [] for name in built}
    names = list(built)
    for index in range(rounds):
        if index >= LEAST_ROUNDS and budget.spent():
            break
        # Another order every round: no variant always inherits the same caches.
        shift = index % max(1, len(names))
        first = index % BATCHES
        last = float(np.mean(reference(first)))
        for name in names[shift:] + names[:shift]:
            before[name].append(last)
            seconds[name].append(built[name](first))
            last = float(np.mean(reference(first)))
            after[name].append(last)
    return seconds, before, after
