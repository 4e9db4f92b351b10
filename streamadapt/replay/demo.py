"""The demonstration: one camera through fog and night, the same network frozen and adapted.

Everything it needs is in the package, and it judges itself: `DemoResult.passed` says whether
adaptation did what it is there for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from streamadapt.errors import ConfigurationError
from streamadapt.processor import StreamProcessor
from streamadapt.replay.corruptions import SEVERITIES
from streamadapt.replay.data import BUILTIN_DIGITS, LabelledData
from streamadapt.replay.digits import (
    FRAME_SIZE,
    PIXEL_MEAN,
    PIXEL_STD,
    digits,
    digits_network,
    upscale,
)
from streamadapt.replay.incidents import CoveredLens, Incidents, SpoiltBatch
from streamadapt.replay.one_thread import one_thread
from streamadapt.replay.policies import FrozenPolicy, ProcessorPolicy
from streamadapt.replay.result import ReplayResult
from streamadapt.replay.runner import Progress, run
from streamadapt.replay.scenario import Domain, Scenario
from streamadapt.replay.scores import error_rate

STOCK_SEVERITY = 4
PHASE_FRAMES = 720
BATCH_FRAMES = 16
FIRST_FRAMES = 64
"""How many frames count as the start of a phase, when the statistics are still those before it."""

_PHASES = (
    ("clear", "none"),
    ("fog", "fog"),
    ("night", "low_light"),
    ("noise", "gaussian_noise"),
    ("clear again", "none"),
)
_CLEAR = ("clear", "clear again")
_WANTED_GAIN = 10.0
_TOLERATED_LOSS = 1.0

Watch = Callable[[StreamProcessor], AbstractContextManager[object]]


@dataclass(frozen=True)
class Phase:
    """Accuracy in one phase, in per cent; `_start` is that of its first `FIRST_FRAMES` frames."""

    name: str
    frames: int
    frozen: float
    adapted: float
    frozen_start: float
    adapted_start: float

    @property
    def gain(self) -> float:
        """Points by which adaptation is ahead."""
        return self.adapted - self.frozen


@dataclass(frozen=True)
class Check:
    """Something that the demonstration promises, and whether it came true."""

    name: str
    passed: bool
    words: str


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration showed.

    Attributes:
        replay: the stream and both models on it, batch by batch.
        phases: accuracy by phase.
        spoilt: the batch of NaN frames.
        covered: the black frames and the rollback.
        checks: what was promised.
    """

    replay: ReplayResult
    phases: tuple[Phase, ...]
    spoilt: SpoiltBatch
    covered: CoveredLens
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON; what a clock measured is under `replay.durations`."""
        return {
            "schema_version": 1,
            "kind": "streamadapt.demo",
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
            "phases": [{**asdict(phase), "gain": phase.gain} for phase in self.phases],
            "spoilt_batch": asdict(self.spoilt),
            "covered_lens": asdict(self.covered),
            "replay": self.replay.to_dict(),
        }


def run_demo(
    *,
    seed: int = 0,
    severity: int = STOCK_SEVERITY,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> DemoResult:
    """Show held-out digits through a changing camera to the frozen and the adapted network.

    Args:
        seed: of the order of the digits and of the camera's noise.
        severity: of fog, night and noise, 1 to 5; the promises are made for `STOCK_SEVERITY`.
        progress: called after each batch with batches done, batches in all (of both networks), and
            what is going on.
        watch: makes what is to be open around the adapted processor while it runs.

    Raises:
        ConfigurationError: seed or severity out of range.
    """
    scenario = demo_scenario(seed=seed, severity=severity)
    images, labels = digits()
    data = LabelledData(upscale(images), labels)
    model = digits_network()
    adapted = _Prepared("adapted", timing="lagged")
    processor = adapted.prepare(copy.deepcopy(model))
    adapted.incidents = incidents = Incidents(processor, scenario, data)
    with (
        one_thread(),
        processor,
        watch(processor) if watch is not None else nullcontext(),
    ):
        replay = run(
            scenario,
            model=model,
            data=data,
            policies=[FrozenPolicy(), adapted],
            progress=progress,
        )
    phases = tuple(_phase(replay, index) for index in range(len(_PHASES)))
    spoilt, covered = incidents.outcome()
    checks = judge(phases, spoilt, covered)
    return DemoResult(replay, phases, spoilt, covered, checks)


def demo_scenario(*, seed: int = 0, severity: int = STOCK_SEVERITY) -> Scenario:
    """The demonstration's stream, for `streamadapt.replay.run` and the like."""
    if severity not in SEVERITIES:
        raise ConfigurationError(f"`severity` must be a whole number from 1 to 5, got {severity}.")
    return Scenario(
        name="Digits on a changing camera",
        domains=tuple(
            Domain(name, PHASE_FRAMES, corruption, severity) for name, corruption in _PHASES
        ),
        data=BUILTIN_DIGITS,
        seed=seed,
        batch_size=BATCH_FRAMES,
        resize=(FRAME_SIZE, FRAME_SIZE),
        mean=(PIXEL_MEAN,) * 3,
        std=(PIXEL_STD,) * 3,
    )


def judge(phases: Sequence[Phase], spoilt: SpoiltBatch, covered: CoveredLens) -> tuple[Check, ...]:
    """Hold what happened against what is promised."""
    checks = [
        _gain_check(phase.name, phase.frozen, phase.adapted, at_least=_WANTED_GAIN)
        for phase in phases
        if phase.name in ("fog", "night")
    ]
    clear = [phase for phase in phases if phase.name in _CLEAR]
    frames = sum(phase.frames for phase in clear)
    frozen = sum(phase.frozen * phase.frames for phase in clear) / frames
    adapted = sum(phase.adapted * phase.frames for phase in clear) / frames
    checks.append(_gain_check("clear", frozen, adapted, at_least=-_TOLERATED_LOSS))
    checks.append(
        Check(
            "bad batch",
            spoilt.rejected == spoilt.answers == spoilt.frames and spoilt.statistics_unchanged,
            f"{spoilt.frames} NaN frames: {spoilt.rejected} rejected, {spoilt.answers} answers "
            f"returned, statistics {'' if spoilt.statistics_unchanged else 'NOT '}unchanged",
        )
    )
    checks.append(
        Check(
            "rollback",
            covered.statistics_restored and covered.distance_after > covered.distance_before,
            f"{covered.frames} black frames: distance {covered.distance_before:.2f} -> "
            f"{covered.distance_after:.2f}, rolled back to {covered.distance_restored:.2f}; "
            f"accuracy {covered.accuracy_before:.1f} % -> {covered.accuracy_after:.1f} % -> "
            f"{covered.accuracy_restored:.1f} %",
        )
    )
    return tuple(checks)


def _gain_check(name: str, frozen: float, adapted: float, *, at_least: float) -> Check:
    gain = adapted - frozen
    # Accuracies are counts over counts: the slack is for their rounding only.
    return Check(
        name,
        gain >= at_least - 1e-9,
        f"frozen {frozen:.1f} %, adapted {adapted:.1f} %: {gain:+.1f} points, "
        f"at least {at_least:+.0f} wanted",
    )


def _phase(replay: ReplayResult, index: int) -> Phase:
    span = replay.domains[index]
    whole = np.flatnonzero(replay.frame_domains == index)
    start = whole[:FIRST_FRAMES]

    def accuracy(policy: str, frames: NDArray[np.int64]) -> float:
        return 100.0 * (1.0 - error_rate(replay.policy(policy).correct[frames]))

    return Phase(
        name=span.name,
        frames=span.frames,
        frozen=accuracy("frozen", whole),
        adapted=accuracy("adapted", whole),
        frozen_start=accuracy("frozen", start),
        adapted_start=accuracy("adapted", start),
    )


class _Prepared(ProcessorPolicy):
    """Wrapped before the run and unwrapped after it, so that others may watch all of it."""

    incidents: Incidents
    _answered = 0

    def prepare(self, model: nn.Module) -> StreamProcessor:
        super().start(model)
        return self.processor

    def start(
        self, model: nn.Module, *, calibration: Sequence[Tensor] = (), cameras: Sequence[str] = ()
    ) -> None:
        """It has a model already."""

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """One step, after whatever befell the camera since the last one."""
        self.incidents.after(self._answered)
        self._answered += 1
        return super().__call__(batch, streams=streams)

    def finish(self) -> None:
        """Left to whoever prepared it."""
