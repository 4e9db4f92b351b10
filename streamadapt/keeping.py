"""Streams' statistics on their way to a store and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt.bank import RowState
from streamadapt.engine import AdaptationEngine
from streamadapt.errors import one_line
from streamadapt.events import StateRefused, StateResumed, StateSaved, StoreFailed
from streamadapt.fingerprint import statistics_fingerprint
from streamadapt.outbox import Outbox
from streamadapt.store import FileStore, StreamState
from streamadapt.store.state import FIELDS, Stream, stream_name
from streamadapt.store.writer import BackgroundWriter

_WAITING = 64  # streams whose state is on its way to the disk
_CLOSE_SECONDS = 30.0
_ROOM_SECONDS = 5.0  # that a step may wait for a disk, where it would lose a stream otherwise


class Keeping:
    """Saves streams now and then, when they lose their row, and at the end; and brings them back.

    Steps and changes come one at a time. What they hand over is copied from the bank at once; the
    rest, waiting for the device included, is done in the writer's thread.

    Args:
        store: where to.
        engine: whose rows.
        outbox: where it is told.
        trouble: where it is said why something could not be saved.
        clock: seconds that only go forward.

    Raises:
        ConfigurationError: the store is another model's, or another processor has it.
    """

    def __init__(
        self,
        store: FileStore,
        *,
        engine: AdaptationEngine,
        outbox: Outbox,
        trouble: dict[str, str],
        clock: Callable[[], float],
    ) -> None:
        self._store, self._engine, self._outbox = store, engine, outbox
        self._trouble, self._clock = trouble, clock
        self._places = engine.layout.places.numpy()
        self._layers = tuple((one.name, one.channels, one.eps) for one in engine.layout.layers)
        self._saved: dict[Hashable, float] = {}
        self._changed: set[Hashable] = set()
        self._resumed: dict[Hashable, tuple[int, StreamState]] = {}
        self._refused: dict[Hashable, list[str]] = {}
        self._off = False
        self._model = self._fingerprint()
        store.open(self._source())
        self._writer = BackgroundWriter(store.save, capacity=_WAITING)

    def require_names(self, streams: Sequence[Hashable]) -> None:
        """Refuse streams that cannot be written down (`StreamError`)."""
        for stream in streams:
            stream_name(stream)

    def resume(self, stream: Hashable, row: int) -> bool:
        """Put what is kept of a new stream into its row; whether there was something."""
        told = self._refused[stream] = list[str]()
        found = self._find(stream, told)
        if found is None:
            return False
        generation, state = found
        self._engine.restore([row], self._as_rows(state))
        self._resumed[stream] = generation, state
        return True

    def rows_of(self, stream: Hashable) -> RowState | None:
        """What is kept of a stream, for another one to begin with."""
        found = self._find(stream, [])
        return None if found is None else self._as_rows(found[1])

    def _find(self, stream: Hashable, told: list[str]) -> tuple[int, StreamState] | None:
        """The newest state of a stream that can be used, and its generation."""
        if self._off:
            return None
        name = stream_name(stream)
        waiting = self._writer.pending(name)
        if waiting is not None:
            state, generation = waiting, 0
        else:
            try:
                found = self._store.load(name)
            except OSError as error:
                told.append(one_line(error))
                return None
            told += found.damaged
            if found.state is None:
                return None
            state, generation = found.state, found.generation
        if state.begins_anew:
            return None
        problem = self._problem(state)
        if problem is not None:
            told.append(problem)
            return None
        return generation, state

    def announce(self, step: int, stream: Hashable) -> None:
        """A new stream is there: tell what became of what is kept of it."""
        self._saved[stream] = self._clock()
        for reason in self._refused.pop(stream, ()):
            self._outbox.post(StateRefused(step=step, stream=stream, reason=reason))
        if stream in self._resumed:
            generation, state = self._resumed.pop(stream)
            self._outbox.post(
                StateResumed(
                    step=step,
                    stream=stream,
                    generation=generation,
                    saved_step=state.step,
                    age_seconds=max(time.time() - state.saved_at, 0.0),
                )
            )

    def undo(self, streams: Sequence[Hashable]) -> None:
        """The step that new streams came with failed."""
        for stream in streams:
            self._resumed.pop(stream, None)
            self._refused.pop(stream, None)

    def gone(self, stream: Hashable) -> None:
        """A stream has no row any more."""
        self._saved.pop(stream, None)
        self._changed.discard(stream)

    def stepped(self, step: int, streams: Sequence[Hashable], rows: Sequence[int]) -> None:
        """Frames of streams were committed: save those whose time has come."""
        if self._off:
            return
        now = self._clock()
        self._changed.update(streams)
        for stream, row in zip(streams, rows, strict=True):
            if now - self._saved.get(stream, now) >= self._store.every_seconds:
                self._put(step, stream, self._engine.bank.capture([row]), wait=False)
        self.look(step)

    def changed(self, streams: Sequence[Hashable]) -> tuple[Hashable, ...]:
        """Those that changed since they were saved."""
        return tuple(stream for stream in streams if stream in self._changed)

    def put(self, step: int, streams: Sequence[Hashable], state: RowState) -> None:
        """Save streams that changed since they were saved; `state` has a row for each."""
        for index, stream in enumerate(streams):
            if stream in self._changed:
                self._put(step, stream, state.take([index]), wait=True)

    def moved(self, streams: Sequence[Hashable]) -> None:
        """Streams were put on another state."""
        self._changed.update(streams)

    def forget(self, step: int, stream: Hashable, row: int) -> None:
        """A stream was dropped; its row is on the source, and so it begins should it come back."""
        self._put(step, stream, self._engine.bank.capture([row]), wait=True)
        self.gone(stream)

    def look(self, step: int) -> None:
        """Tell what was written."""
        for stream, written, problem in self._writer.done():
            if problem is None:
                self._trouble.pop("store", None)
                self._outbox.post(
                    StateSaved(
                        step=step,
                        stream=stream,
                        generation=written.number,
                        size_bytes=written.size_bytes,
                    )
                )
            else:
                self._failed(step, stream, problem)

    def flush(self, step: int) -> None:
        """Wait until everything handed over is on the disk."""
        self._writer.flush(_CLOSE_SECONDS)
        self.look(step)

    def close(self, step: int) -> None:
        """Wait likewise, and let the store go."""
        if not self._writer.close(_CLOSE_SECONDS):
            self._trouble["store"] = "what was to be saved was not written in time"
        self.look(step)
        self._store.close()

    def source_replaced(self) -> None:
        """The model has other source statistics than those that the store is of: an end of it."""
        self._off = True
        self._changed.clear()
        self._trouble["store"] = (
            "the model's source statistics were replaced, so nothing is saved any more; wrap it "
            "anew with another folder"
        )

    def _put(self, step: int, stream: Hashable, rows: RowState, *, wait: bool) -> None:
        if self._off:
            return
        name, saved_at = stream_name(stream), time.time()
        taken = self._writer.put(
            name,
            lambda: self._as_state(name, rows, step, saved_at),
            wait_seconds=_ROOM_SECONDS if wait else 0.0,
        )
        if taken:
            self._saved[stream] = self._clock()
            self._changed.discard(stream)
        elif wait:
            self._failed(step, stream, f"{_WAITING} streams wait for the disk already")

    def _failed(self, step: int, stream: Hashable, problem: str) -> None:
        if stream in self._saved:  # it has a row, and its turn comes again
            self._changed.add(stream)
        self._trouble["store"] = f"the state of {stream!r} was not saved: {problem}"
        self._outbox.post(StoreFailed(step=step, stream=stream, error=problem))

    def _problem(self, state: StreamState) -> str | None:
        """Why a state cannot be used, or None."""
        bank = self._engine.bank
        if state.model != self._model:
            return f"it is of another model ({state.model[:12]} instead of {self._model[:12]})"
        if state.preprocessing != self._store.preprocessing:
            return (
                f"frames were prepared otherwise ({state.preprocessing!r}, now "
                f"{self._store.preprocessing!r})"
            )
        ours = self._estimator, self._columns, self._fields
        if (state.estimator, state.columns, state.fields) != ours:
            return (
                f"it was made by {state.estimator}, and this is {self._estimator}, or one with "
                "other values of its own"
            )
        wanted = {} if bank.companion is None else bank.companion.shapes
        if wanted != {name: one.shape for name, one in state.further.items()}:
            return "the features of the classifier's head were aligned otherwise, or not at all"
        return None

    @property
    def _estimator(self) -> str:
        return type(self._engine.estimator).__name__

    @property
    def _columns(self) -> tuple[str, ...]:
        bank = self._engine.bank
        positions = tuple(f"positions of {name}" for name, _, _ in self._layers)
        return ("frames", "updates", *positions, *bank.scalar_names)

    @property
    def _fields(self) -> tuple[str, ...]:
        bank = self._engine.bank
        return FIELDS[: 4 if bank.compensated else 2] + (FIELDS[4:] if bank.has_aside else ())

    def _fingerprint(self) -> str:
        source = self._engine.bank.source.cpu().numpy()[:, self._places]
        return statistics_fingerprint(self._layers, source)

    def _state(
        self,
        stream: Stream,
        statistics: Tensor,
        counters: Tensor,
        further: Mapping[str, Tensor],
        *,
        step: int,
        saved_at: float,
    ) -> StreamState:
        return StreamState(
            stream=stream,
            model=self._model,
            preprocessing=self._store.preprocessing,
            estimator=self._estimator,
            layers=self._layers,
            fields=self._fields[: len(statistics)],
            statistics=statistics.cpu().numpy()[:, self._places],
            columns=self._columns if len(counters) else (),
            counters=counters.cpu().numpy(),
            further={name: one.cpu().numpy() for name, one in further.items()},
            step=step,
            saved_at=saved_at,
        )

    def _as_state(self, stream: Stream, rows: RowState, step: int, saved_at: float) -> StreamState:
        further = {} if rows.companion is None else rows.companion.arrays()
        return self._state(
            stream, rows.data[0], rows.tallies[0], further, step=step, saved_at=saved_at
        )

    def _source(self) -> StreamState:
        nothing = torch.empty(0, dtype=torch.float64)
        return self._state(
            "source", self._engine.bank.source, nothing, {}, step=0, saved_at=time.time()
        )

    def _as_rows(self, state: StreamState) -> RowState:
        bank = self._engine.bank
        data = np.zeros((1, *bank.data.shape[1:]), dtype=np.float32)
        data[:, 1] = 1.0  # the padding's, as the bank has it
        data[0][:, self._places] = state.statistics
        counters = torch.from_numpy(np.ascontiguousarray(state.counters, dtype=np.float64))
        saved: Any = None
        if bank.companion is not None:
            arrays = {k: torch.from_numpy(np.array(one)) for k, one in state.further.items()}
            saved = bank.companion.of_arrays(arrays)
        return RowState(torch.from_numpy(data), counters.unsqueeze(0), bank.columns, saved)
