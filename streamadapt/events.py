"""What happened, as frozen values. Units stand in the field names.

Every event has `step`, the number of processor steps before it. Events are handed to `on_event`
after the output is known and outside the state lock; a handler that raises is logged and does not
stop inference.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

Outcome = Literal[
    "updated",
    "frozen",
    "rejected",
    "held",
    "empty",
    "failed",
    "unobserved",
    "idle",
    "between",
]
"""What a step did to the statistics: `updated` at least one row; `frozen` by `freeze()`;
`rejected` because no frame was usable; `held` by the guard; `empty` batch; `failed` inside the
update; `unobserved` because no adaptable layer was executed; `idle`, a shadow step between two
candidate passes; `between`, a batch between two that adapt, see `adapt_every`."""

Rejection = Literal[
    "nonfinite", "black", "saturated", "frozen", "shape", "corrupt", "stale", "reconnect"
]
"""Why a frame is not learned from; see `FramesRejected`."""

DriftSource = Literal["estimator", "early", "middle", "late"]
"""What noticed a change; see `DriftDetected`."""


Phase = Literal["settling", "following", "resting"]
"""What an estimator is doing with a stream; see `PhaseChanged`."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""

    step: int


@dataclass(frozen=True, kw_only=True)
class StepCompleted(Event):
    """A batch went through the model.

    `timing` says how `inference_seconds` and `update_seconds` were measured: wall clock on the
    CPU, device events on CUDA (the event then arrives a few steps late).
    """

    frames: Mapping[Hashable, int]
    outcome: Outcome
    updated_streams: tuple[Hashable, ...]
    inference_seconds: float
    update_seconds: float
    timing: Literal["wall", "cuda_event"]


@dataclass(frozen=True, kw_only=True)
class FramesRejected(Event):
    """Frames had weight zero in the update; their outputs were still returned.

    `nonfinite` in the picture or in a layer; `corrupt`, `stale` and `reconnect` are those of
    `sa.frames`, which also finds some of the `black` and `frozen` ones; the other reasons are the
    guard's: see `FrameGate`.
    """

    stream: Hashable
    frames: int
    reason: Rejection


@dataclass(frozen=True, kw_only=True)
class UpdateRefused(Event):
    """A stream's proposed statistics were not finite; its row was left as it was."""

    stream: Hashable


@dataclass(frozen=True, kw_only=True)
class UpdateFailed(Event):
    """The update raised; nothing was committed, the output was still returned."""

    error: str


@dataclass(frozen=True, kw_only=True)
class PhaseChanged(Event):
    """A stream's estimator went from one phase to another: what it makes of the world.

    `settling`: it starts from the source, because the stream is new or its world has changed;
    `following`: its world is another than the source's; `resting`: it is the source's.
    `before` is None for a stream's first phase.
    """

    stream: Hashable
    before: Phase | None
    phase: Phase


@dataclass(frozen=True, kw_only=True)
class DriftDetected(Event):
    """A stream's world is not what it was. Says nothing of how good the answers are.

    `by` says what noticed: the `estimator`, which started anew and found other statistics than it
    had, or the detector of the `early`, `middle` or `late` layers' score. `deviation` is that
    score's, in standard deviations of the stream's own reference; None for the estimator's.
    `calibrated`: the alarm is one of those whose false ones are as rare as `Alarms` says.
    """

    stream: Hashable
    by: DriftSource
    deviation: float | None
    calibrated: bool


@dataclass(frozen=True, kw_only=True)
class DriftFailed(Event):
    """A detector raised; its scores of that moment are lost, and nothing else."""

    stream: Hashable
    error: str


@dataclass(frozen=True, kw_only=True)
class FleetDriftDetected(Event):
    """So many streams had alarms within so short a time that it is no camera's own affair."""

    streams: tuple[Hashable, ...]


@dataclass(frozen=True, kw_only=True)
class FramesExported(Event):
    """Frames of a stream that alarmed were put into a file, for labelling."""

    stream: Hashable
    path: str


@dataclass(frozen=True, kw_only=True)
class FrameExportFailed(Event):
    """They could not be written."""

    stream: Hashable
    error: str


@dataclass(frozen=True, kw_only=True)
class SettlingPassed(Event):
    """The frames of a step went through the model once more, to measure a new world."""

    streams: tuple[Hashable, ...]


@dataclass(frozen=True, kw_only=True)
class SettlingFailed(Event):
    """That second forward raised; the streams stay on the source, the output was returned."""

    error: str


@dataclass(frozen=True, kw_only=True)
class SettlingRefused(Event):
    """The model's answers said less under what settling found than under the source's statistics.

    The stream rests on the source.
    """

    stream: Hashable


@dataclass(frozen=True, kw_only=True)
class DomainLearned(Event):
    """A stream left a domain that was new; its statistics are kept under this name."""

    stream: Hashable
    domain: str


@dataclass(frozen=True, kw_only=True)
class DomainRecalled(Event):
    """A stream is in a domain that it knows, and was put on its statistics.

    `distance`: of what was measured from them, location-scale distance, mean over half the layers.
    """

    stream: Hashable
    domain: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class DomainForgotten(Event):
    """A stream knows more domains than it may keep; this one was longest out of use."""

    stream: Hashable
    domain: str


@dataclass(frozen=True, kw_only=True)
class ForwardFailed(Event):
    """The model raised; nothing was committed, its exception reached the caller."""

    error: str


@dataclass(frozen=True, kw_only=True)
class LayersUnobserved(Event):
    """Adaptable layers that the model did not execute through their tap; they keep their values."""

    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AnswersCompared(Event):
    """The guard compared a stream's adapted answers with the source's, on the same frames.

    `frames`: how many; `gain`: estimated share of right answers won by adapting, over some 256
    compared frames, the latest above all, since the statistics were last put elsewhere;
    `agreement`: share of equal answers among these frames, None for outputs without classes.
    """

    stream: Hashable
    frames: int
    gain: float
    agreement: float | None


@dataclass(frozen=True, kw_only=True)
class LabelsRevealed(Event):
    """Labels came for frames of a stream: how many of its answers were right, and the source's."""

    stream: Hashable
    frames: int
    right: int
    source_right: int


@dataclass(frozen=True, kw_only=True)
class GuardActed(Event):
    """The guard did something about a stream, and is in `state` now.

    `gain` and `frames`: the estimate that it acted on, and how many compared frames it rests on.
    """

    stream: Hashable
    action: Literal["hold", "release", "shrink", "rollback", "pin", "unpin"]
    state: Literal["watching", "held", "shrunk", "rolled_back", "pinned"]
    gain: float | None
    frames: int


@dataclass(frozen=True, kw_only=True)
class GuardFailed(Event):
    """The guard, or the memory of domains, failed in something; the output was returned."""

    error: str


@dataclass(frozen=True, kw_only=True)
class ShadowCompared(Event):
    """The adapted candidate ran beside the source, on the same frames.

    `agreement` is the share of frames with the same top class (or the same per-position classes)
    for outputs of shape `[frames, classes, ...]`, None for other outputs;
    `relative_difference` is `|candidate - source| / |source|` over the first output tensor.
    """

    frames: int
    agreement: float | None
    relative_difference: float | None


@dataclass(frozen=True, kw_only=True)
class ShadowFailed(Event):
    """The candidate pass raised; the source output was returned."""

    error: str


@dataclass(frozen=True, kw_only=True)
class StreamAdmitted(Event):
    """A stream got a row, starting from the source."""

    stream: Hashable
    row: int


@dataclass(frozen=True, kw_only=True)
class StreamBegan(Event):
    """A new stream began with what another one had, see `begin_like`; with the source's statistics
    where `found` is false, because nothing is known of that one, or of its domain.
    """

    stream: Hashable
    like: Hashable
    domain: str | None
    found: bool


@dataclass(frozen=True, kw_only=True)
class StreamDropped(Event):
    """A stream gave its row back; `evicted` when another stream needed it."""

    stream: Hashable
    evicted: bool


@dataclass(frozen=True, kw_only=True)
class StateSaved(Event):
    """A stream's statistics are in the store."""

    stream: Hashable
    generation: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class StateResumed(Event):
    """A stream goes on with statistics from the store; generation 0 was still on its way there."""

    stream: Hashable
    generation: int
    saved_step: int
    age_seconds: float


@dataclass(frozen=True, kw_only=True)
class StateRefused(Event):
    """Something that the store has of a stream was not used."""

    stream: Hashable
    reason: str


@dataclass(frozen=True, kw_only=True)
class StoreFailed(Event):
    """A stream's statistics could not be saved; tried again while it has a row, else lost."""

    stream: Hashable
    error: str


@dataclass(frozen=True, kw_only=True)
class SnapshotTaken(Event):
    """State was copied under a name."""

    name: str
    streams: tuple[Hashable, ...]


@dataclass(frozen=True, kw_only=True)
class SnapshotDropped(Event):
    """A snapshot is gone: `capacity` pushed it out, or its source was replaced."""

    name: str
    reason: Literal["capacity", "source_replaced"]


@dataclass(frozen=True, kw_only=True)
class RolledBack(Event):
    """Streams were put back on an earlier state."""

    to: str
    streams: tuple[Hashable, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class KernelsUnavailable(Event):
    """A model is adapted with PyTorch's own kernels, which costs more; told once."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class EngineBuilt(Event):
    """Batches in between are answered by an engine that was built for the present statistics."""

    engine: str
    build_seconds: float


@dataclass(frozen=True, kw_only=True)
class EngineFailed(Event):
    """It could not be built, or raised; batches in between run on the adapted model."""

    engine: str
    error: str


@dataclass(frozen=True, kw_only=True)
class AdaptationFrozen(Event):
    """Updates stopped; outputs go on with the current statistics."""


@dataclass(frozen=True, kw_only=True)
class AdaptationResumed(Event):
    """Updates go on."""


@dataclass(frozen=True, kw_only=True)
class ModeChanged(Event):
    """Shadow or adapt; every stream starts from the source."""

    mode: Literal["adapt", "shadow"]


@dataclass(frozen=True, kw_only=True)
class EstimatorRetuned(Event):
    """The update rule goes on with other settings."""

    estimator: str


@dataclass(frozen=True, kw_only=True)
class SourceReplaced(Event):
    """`load_state_dict` brought new statistics: they are the source now, in every row."""

    layers: int
    snapshots_dropped: int


@dataclass(frozen=True, kw_only=True)
class BuffersRebound(Event):
    """The model's buffers were replaced from outside (`.to()`, `.half()`, ...) and bound again."""

    device: str
    dtypes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StepCaptured(Event):
    """Batches of up to `frames` frames of this shape run as one CUDA graph from now on."""

    frames: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CaptureMissed(Event):
    """Steps were captured, but this batch did not fit any of them and ran without."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class CapturesDropped(Event):
    """Captured steps are no longer used: the model or the rule that they hold is another now."""

    captures: int


@dataclass(frozen=True, kw_only=True)
class JournalFailed(Event):
    """The journal could not be written; it is tried again. The stream goes on without."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class JournalDropped(Event):
    """Records that the disk did not take in time are not in the journal."""

    records: int


@dataclass(frozen=True, kw_only=True)
class Unwrapped(Event):
    """The model is as it was before."""
