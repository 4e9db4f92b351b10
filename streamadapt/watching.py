"""Drift of every stream: scores from the device, detectors on the host, alarms as events."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from streamadapt.drift.alarms import Alarms
from streamadapt.drift.monitor import FleetAlarm, ScoreMonitor
from streamadapt.drift.patient import PatientExecutor
from streamadapt.drift.scores import DEPTHS, by_depth, thirds
from streamadapt.errors import one_line
from streamadapt.events import (
    DriftDetected,
    DriftFailed,
    DriftSource,
    FleetDriftDetected,
    FrameExportFailed,
    FramesExported,
    Phase,
)
from streamadapt.outbox import Outbox
from streamadapt.parts import real_frames_of, some_frames
from streamadapt.readout import Readouts
from streamadapt.weighing import StepRows

_LOOKS = 4  # at a stream for each value that detectors see
_MEMORY_SECONDS = 600.0  # of what is usual in a layer
_LEAST_DISTANCE = 1e-12


@dataclass
class _Stream:
    """What is known of one row."""

    monitor: ScoreMonitor
    seconds: float = 0.0
    looked: float = -math.inf
    layers: NDArray[np.float64] | None = None
    scores: dict[str, float] = field(default_factory=dict)
    # Of the logarithm, in each layer: how many looks, mean, and variance.
    usual: tuple[int, NDArray[np.float64], NDArray[np.float64]] | None = None
    deviations: NDArray[np.float64] | None = None
    home: Phase | None = None  # the phase that the reference is of


@dataclass(frozen=True)
class Scores:
    """The newest scores of a stream; empty before there are any.

    Attributes:
        observed: distance of what was seen from the source, by layer; NaN for layers that did not
            run.
        observed_deviations: of its logarithm, from what was usual in the stream's last ten minutes.
        scores: mean of `observed` over the early, middle and late third of the layers, and over
            the model.
        deviations: of the early, middle and late score from the stream's own reference, in its
            standard deviations; none while there is no reference.
        calibrated: whether that reference is long enough for what `Alarms` promises.
    """

    observed: tuple[float, ...] = ()
    observed_deviations: tuple[float, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    deviations: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False


class DriftBook:
    """Watches the streams of one processor.

    Args:
        alarms: what to promise; None: nothing is watched.
        outbox: where alarms are told.
        readouts: brings scores to the host.
        layers: how many the model has.
        clock: seconds; the fleet's time.
        on_alarm: called with the row of each alarm.

    Attributes:
        alarms: as given.
    """

    def __init__(
        self,
        alarms: Alarms | None,
        *,
        outbox: Outbox,
        readouts: Readouts,
        layers: int,
        clock: Callable[[], float],
        on_alarm: Callable[[int], None] = lambda row: None,
    ) -> None:
        self._on_alarm = on_alarm
        self.alarms, self._outbox, self._readouts, self._clock = alarms, outbox, readouts, clock
        self._names: tuple[DriftSource, ...] = tuple(
            name for name in DEPTHS if name in thirds(layers)
        )
        self._streams: dict[int, _Stream] = {}
        self._to_export: dict[int, tuple[Hashable, str]] = {}
        self._fleet = None
        if alarms is not None:
            self._fleet = FleetAlarm(
                cameras=alarms.fleet_cameras, window_seconds=alarms.fleet_window_seconds
            )
        background = alarms is not None and alarms.background
        self._executor = PatientExecutor() if background else None

    def pass_time(self, rows: Sequence[int], elapsed_seconds: Sequence[float]) -> None:
        """Frames of rows came, so long after those before them."""
        if self.alarms is not None:
            for row, elapsed in zip(rows, elapsed_seconds, strict=True):
                self._of(row).seconds += elapsed

    def due(self, rows: Sequence[int]) -> bool:
        """Whether any of the rows is to be looked at; then all of them are."""
        if self.alarms is None:
            return False
        pause = 1.0 / (_LOOKS * self.alarms.rate_hz)
        streams = [self._of(row) for row in rows]
        if all(one.seconds - one.looked < pause * (1.0 - 1e-9) for one in streams):
            return False
        for one in streams:
            one.looked = one.seconds
        return True

    def read(
        self, step: int, streams: Sequence[Hashable], rows: Sequence[int], distances: Tensor
    ) -> None:
        """Ask for the scores of rows, `[rows, layers]` of `observed_distances`."""
        times = [self._of(row).seconds for row in rows]

        def receive(values: Tensor) -> None:
            for stream, row, seconds, layers in zip(
                streams, rows, times, values.numpy(), strict=True
            ):
                try:
                    self._take(step, stream, row, seconds, layers)
                except Exception as error:  # a detector's, which may be the user's
                    self._outbox.post(DriftFailed(step=step, stream=stream, error=one_line(error)))

        self._readouts.submit(distances, receive)

    def phase_changed(self, row: int, now: Phase) -> None:
        """The estimator of a row took up something else."""
        if self.alarms is None or now == "settling":
            return
        one = self._of(row)
        if now == "following" or one.home != now:
            # What is usual under other statistics, or in another world, has to be learned anew.
            self._rereference(one)
            one.home = now

    def other_world(self, step: int, stream: Hashable, row: int) -> None:
        """The estimator of a row started anew, and found another world."""
        if self.alarms is not None:
            self._alarm(step, stream, row, "estimator", math.nan, calibrated=False)

    def export(self, step: int, frames: Any, where: StepRows) -> None:
        """Put frames of the rows that alarmed since the last step into files."""
        if not self._to_export or not isinstance(frames, Tensor):
            return
        assert self.alarms is not None and self.alarms.export is not None
        for place, row in enumerate(where.rows):
            if row not in self._to_export:
                continue
            stream, by = self._to_export.pop(row)
            chosen = [
                k
                for k in range(real_frames_of(where))
                if where.entries is None or where.entries[k] == place
            ]
            try:
                own = some_frames(frames, chosen)
                path = self.alarms.export.save(stream, step, by, own)
            except Exception as error:  # a disk's, as a rule
                self._outbox.post(
                    FrameExportFailed(step=step, stream=stream, error=one_line(error))
                )
                continue
            if path is not None:
                self._outbox.post(FramesExported(step=step, stream=stream, path=str(path)))

    def forget(self, rows: Iterable[int]) -> None:
        """Rows were put on another state, or have another owner."""
        for row in rows:
            self._streams.pop(row, None)

    def scores(self, row: int) -> Scores:
        """The newest scores of a row."""
        one = self._streams.get(row)
        if one is None or one.layers is None or one.deviations is None:
            return Scores()
        found = {
            name: one.monitor.deviation(name, one.scores[name])
            for name in self._names
            if name in one.scores
        }
        return Scores(
            observed=tuple(one.layers.tolist()),
            observed_deviations=tuple(one.deviations.tolist()),
            scores=one.scores,
            deviations={name: value for name, value in found.items() if math.isfinite(value)},
            calibrated=one.monitor.calibrated,
        )

    def score(self, row: int) -> float | None:
        """The newest score of a row's whole model."""
        one = self._streams.get(row)
        return None if one is None else one.scores.get("model")

    def close(self) -> None:
        """Nothing more is looked for."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def _of(self, row: int) -> _Stream:
        if row not in self._streams:
            assert self.alarms is not None
            self._streams[row] = _Stream(
                ScoreMonitor(
                    self._names,
                    expected_run_seconds=self.alarms.expected_run_seconds,
                    rate_hz=self.alarms.rate_hz,
                    detector=self.alarms.detector,
                    executor=self._executor,
                )
            )
        return self._streams[row]

    def _take(
        self,
        step: int,
        stream: Hashable,
        row: int,
        seconds: float,
        layers: NDArray[np.float64],
    ) -> None:
        one = self._streams.get(row)
        if one is None or not np.isfinite(layers).any():
            return
        one.layers, one.scores = layers, {**one.scores, **by_depth(layers)}
        self._compare(one)
        alarms = one.monitor.observe(
            seconds, {name: one.scores[name] for name in self._names if name in one.scores}
        )
        for name in (one for one in self._names if one in alarms):
            calibrated = one.monitor.calibrated_for(name)
            deviation = one.monitor.deviation(name, one.scores[name])
            self._alarm(step, stream, row, name, deviation, calibrated=calibrated)
        if alarms:
            self._rereference(one)

    def _compare(self, one: _Stream) -> None:
        """Each layer with what is usual in it: a moving mean and variance of the logarithm."""
        assert one.layers is not None and self.alarms is not None
        log = np.log(np.maximum(one.layers, _LEAST_DISTANCE))
        count, mean, variance = one.usual or (0, log, np.zeros_like(log))
        mean = np.where(np.isfinite(mean), mean, log)  # of layers that had not run yet
        difference = log - mean
        spread = np.sqrt(np.maximum(variance, _LEAST_DISTANCE))
        one.deviations = difference / spread if count > 1 else np.full_like(log, np.nan)
        longest = _MEMORY_SECONDS * _LOOKS * self.alarms.rate_hz
        weight = 1.0 / min(count + 1, max(longest, 2.0))
        mean = np.where(np.isfinite(log), mean + weight * difference, mean)
        variance = np.nan_to_num((1.0 - weight) * (variance + weight * difference**2))
        one.usual = count + 1, mean, variance

    def _rereference(self, one: _Stream) -> None:
        one.monitor.rereference()
        one.usual = None

    def _alarm(
        self,
        step: int,
        stream: Hashable,
        row: int,
        by: DriftSource,
        deviation: float,
        *,
        calibrated: bool,
    ) -> None:
        self._outbox.post(
            DriftDetected(
                step=step,
                stream=stream,
                by=by,
                deviation=None if math.isnan(deviation) else deviation,
                calibrated=calibrated,
            )
        )
        self._on_alarm(row)
        assert self.alarms is not None
        if self.alarms.export is not None:
            self._to_export[row] = stream, by
        assert self._fleet is not None
        behind = self._fleet.observe(self._clock(), stream)
        if behind:
            self._outbox.post(FleetDriftDetected(step=step, streams=behind))
