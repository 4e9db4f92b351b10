"""Puts down what each step saw and did. Nothing here makes a step wait for a device or a disk."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamadapt.committing import Committed
from streamadapt.engine import AdaptationEngine
from streamadapt.estimators import Estimator
from streamadapt.events import (
    Event,
    JournalDropped,
    JournalFailed,
    Outcome,
    StepCompleted,
)
from streamadapt.journal.background import BackgroundWriter
from streamadapt.journal.format import Header, Layer
from streamadapt.journal.health import distances_by_layer, output_health
from streamadapt.journal.record import Payload
from streamadapt.journal.settings import Journal
from streamadapt.outbox import Outbox
from streamadapt.readout import Readouts
from streamadapt.transfer import upload
from streamadapt.weighing import StepRows

_EVENTS_KEPT = 256  # between two records


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """What is known of a step without asking the device; `settling`: of its settling pass."""

    step: int
    frames: Mapping[Hashable, int]
    where: StepRows
    newest_pts: Mapping[int, float]
    outcome: Outcome
    settling: bool = False


class Recorder:
    """The journal of one processor.

    Args:
        journal: where, and how much.
        engine: whose steps are recorded.
        readouts: brings values to the host, in order.
        outbox: whose events are recorded, and where the journal's own go.
        timing: of the processor.
        mode: says `adapt` or `shadow` when asked.

    Raises:
        ConfigurationError: the folder is taken or cannot be used.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        engine: AdaptationEngine,
        readouts: Readouts,
        outbox: Outbox,
        timing: str,
        mode: Callable[[], str],
    ) -> None:
        self.journal = journal
        self._engine = engine
        self._readouts = readouts
        self._outbox = outbox
        self._timing = timing
        self._mode = mode
        self._run = os.urandom(8).hex()
        self._sequence = 0
        self._since_state: dict[int, int] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._events_seen = 0
        self._source_version = -1
        self._estimator: Estimator | None = None
        self._header: Header | None = None
        self._compact: Tensor | None = None
        self._writer = BackgroundWriter(journal)
        self._unsubscribe = outbox.subscribe(self._take_event)

    def record(self, facts: RecordedStep, committed: Committed | None, output: Any) -> None:
        """Put down a step; on CUDA it reaches the file a few steps late.

        Args:
            facts: what is known of it.
            committed: what it brought to the bank, None where nothing was to be committed.
            output: what the model returned.
        """
        header = self._current_header()
        stated, origins = self._states_due(facts, committed)
        meta = self._meta(facts, stated, origins)
        where, engine = facts.where, self._engine
        with torch.inference_mode(False), torch.no_grad():
            wide, narrow = [], []
            if committed is not None:
                index = self._channels(engine.device)
                rows = engine.bank.select(where.rows)
                wide += [committed.verdict, committed.positions, rows.tallies]
                if committed.healthy is not None:
                    wide.append(committed.healthy)
                narrow += [
                    committed.moments.mean.index_select(1, index),
                    committed.moments.var.index_select(1, index),
                    rows.data.index_select(2, index),
                ]
            health = self._health(output, where)
            if health is not None:
                narrow.append(health)
            parts = [one.double().reshape(-1).view(torch.float32) for one in wide]
            parts += [one.float().reshape(-1) for one in narrow]
            together = (
                torch.cat([one.to(engine.device) for one in parts])
                if parts
                else torch.zeros(0, device=engine.device)
            )
        shape = _Shape(
            header,
            rows=len(where.rows),
            stated=stated,
            committed=committed is not None,
            judged=committed is not None and committed.healthy is not None,
            health=health is not None,
        )
        self._readouts.submit(
            together,
            lambda host: self._writer.put(header, lambda: shape.payload(meta, host.numpy())),
        )
        self._tell_troubles(facts.step)

    def flush(self) -> None:
        """Wait until everything recorded is in the file."""
        self._writer.flush()

    def close(self, step: int) -> None:
        """Put down the last events, end the file and let the folder go."""
        self._unsubscribe()
        if self._events and self._header is not None:
            empty = RecordedStep(step, {}, StepRows((), None, ()), {}, "empty")
            meta = {**self._meta(empty, [], []), "outcome": None}
            self._writer.put(self._header, lambda: Payload(meta))
        self._writer.close()
        self._tell_troubles(step)

    def _meta(self, facts: RecordedStep, stated: list[int], origins: list[str]) -> dict[str, Any]:
        lost = self._events_seen - len(self._events)
        events, self._events_seen = list(self._events), 0
        self._events.clear()
        number, self._sequence = self._sequence, self._sequence + 1
        where = facts.where
        return {
            "sequence": number,
            "step": facts.step,
            "time_seconds": time.time(),
            "outcome": facts.outcome,
            "streams": [_plain(stream) for stream in facts.frames] if where.rows else [],
            "rows": list(where.rows),
            "frames": list(facts.frames.values()) if where.rows else [],
            "committed": [0] * len(where.rows),
            "pts_seconds": [facts.newest_pts.get(row) for row in where.rows],
            "elapsed_seconds": list(where.elapsed_seconds[: len(where.rows)]),
            "stated": stated,
            "origins": origins,
            "events": events,
            "events_lost": lost,
            **({"settling": True} if facts.settling else {}),
        }

    def _states_due(
        self, facts: RecordedStep, committed: Committed | None
    ) -> tuple[list[int], list[str]]:
        """Places in the step's rows whose whole state is to be written, and where it is from."""
        stated: list[int] = []
        origins: list[str] = []
        if committed is None:
            return stated, origins
        for place, row in enumerate(facts.where.rows):
            origin = self._engine.displaced.pop(row, None)
            since = self._since_state.get(row, 0) + 1
            if origin is not None or since >= self.journal.state_every:
                stated.append(place)
                origins.append(origin or "kept")
                since = 0
            self._since_state[row] = since
        return stated, origins

    def _health(self, output: Any, where: StepRows) -> Tensor | None:
        if not where.rows:
            return None
        entries = None
        if where.entries is not None:
            entries = upload(torch.tensor(where.entries, dtype=torch.long), self._engine.device)
        try:
            return output_health(output, entries, len(where.rows))
        except (RuntimeError, TypeError):  # whatever else a model may return
            return None

    def _channels(self, device: torch.device) -> Tensor:
        """Places of the layers' channels among the bank's padded ones."""
        if self._compact is None or self._compact.device != device:
            self._compact = self._engine.layout.places.to(device)
        return self._compact

    def _current_header(self) -> Header:
        """The header of the present source and rule; others have files of their own."""
        engine = self._engine
        known: tuple[int, Estimator | None] = self._source_version, self._estimator
        if self._header is None or known != (engine.source_version, engine.estimator):
            source = engine.bank.source.index_select(1, self._channels(engine.device))
            self._source_version, self._estimator = engine.source_version, engine.estimator
            self._header = Header(
                layers=tuple(
                    Layer(one.name, one.channels, one.eps) for one in engine.layout.layers
                ),
                source=source.cpu().numpy(),
                estimator=repr(engine.estimator),
                fields=engine.bank.data.shape[1],
                scalars=engine.bank.scalar_names,
                timing=self._timing,
                mode=self._mode(),
                precision=self.journal.precision,
                max_streams=engine.bank.rows,
                library=_library_version(),
                torch=torch.__version__,
                run=self._run,
                created_seconds=time.time(),
            )
        return self._header

    def _take_event(self, event: Event) -> None:
        if isinstance(event, StepCompleted | JournalDropped | JournalFailed):
            return
        self._events_seen += 1
        self._events.append(
            {"event": type(event).__name__}
            | {one.name: _plain(getattr(event, one.name)) for one in fields(event)}
        )

    def _tell_troubles(self, step: int) -> None:
        failure, dropped = self._writer.troubles()
        if failure is not None:
            self._outbox.post(JournalFailed(step=step, reason=failure))
        if dropped:
            self._outbox.post(JournalDropped(step=step, records=dropped))


@dataclass(frozen=True, eq=False)
class _Shape:
    """How what comes from the device in one piece is taken apart, by the writer's thread."""

    header: Header
    rows: int
    stated: list[int]
    committed: bool
    judged: bool
    health: bool

    def payload(self, meta: dict[str, Any], flat: NDArray[np.float32]) -> Payload:
        header, rows = self.header, self.rows
        layers, channels = len(header.layers), header.channels
        pieces = _Pieces(flat)
        if not self.committed:
            return Payload(meta, health=pieces.narrow(rows, 3) if self.health else None)
        verdict = pieces.wide(rows)
        positions = pieces.wide(layers)
        tallies = pieces.wide(rows, 2 + layers + len(header.scalars))
        healthy = pieces.wide(rows) if self.judged else None
        moments = pieces.narrow(2, rows, channels).swapaxes(0, 1)
        states = pieces.narrow(rows, header.fields, channels)
        meta = {**meta, "committed": [int(value) for value in verdict]}
        if healthy is not None:
            meta["healthy"] = [bool(value) for value in healthy]
        if meta["outcome"] == "updated" and not (verdict > 0).any():
            meta["outcome"] = "rejected"
        return Payload(
            meta,
            positions,
            moments,
            distances_by_layer(states[:, :2], header),
            pieces.narrow(rows, 3) if self.health else None,
            states[self.stated] if self.stated else None,
            tallies[self.stated] if self.stated else None,
        )


class _Pieces:
    """Takes arrays off the front of one."""

    def __init__(self, flat: NDArray[np.float32]) -> None:
        self._flat = flat

    def narrow(self, *shape: int) -> NDArray[np.float32]:
        """The next fp32 values."""
        count = int(np.prod(shape))
        part, self._flat = self._flat[:count], self._flat[count:]
        return part.reshape(shape)

    def wide(self, *shape: int) -> NDArray[np.float64]:
        """The next float64 values, two places each."""
        return self.narrow(*shape[:-1], 2 * shape[-1]).view(np.float64)


def _plain(value: Any) -> Any:
    """As JSON has it; what JSON has no form for becomes its repr."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _library_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("streamadapt")
    except PackageNotFoundError:
        return "unknown"
