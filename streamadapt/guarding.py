"""The guard at work: judges frames, compares answers, and carries out what its ladders decide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import Tensor

from streamadapt.acting import Acts, Watched, keep_answers
from streamadapt.engine import AdaptationEngine
from streamadapt.errors import ConfigurationError, one_line
from streamadapt.events import (
    AnswersCompared,
    FramesRejected,
    GuardFailed,
    LabelsRevealed,
    Phase,
    Rejection,
)
from streamadapt.guard.evidence import Evidence
from streamadapt.guard.known import Guarded
from streamadapt.guard.labels import AnswerBook
from streamadapt.guard.ladder import Comparison, Ladder
from streamadapt.guard.looks import Looks
from streamadapt.guard.quality import QUALITY, FrameGate
from streamadapt.guard.ring import StateRing
from streamadapt.guard.settings import Guard
from streamadapt.outbox import Outbox
from streamadapt.parts import real_frames_of, rows_of_some, some_frames
from streamadapt.readout import Readouts
from streamadapt.weighing import StepRows

_BUSY_STEPS = 4  # of a row, of which one is compared while another settles
_REASONS: tuple[Rejection, ...] = get_args(Rejection)[: len(QUALITY) - 1]  # in its order


@dataclass(frozen=True, eq=False)
class Comparing:
    """A step's answers, and how to get more.

    Attributes:
        step: its number.
        streams: the names of its rows.
        where: its rows.
        frames: the model's first argument.
        output: what the model returned.
        forward: runs the model on some frames, on the source's statistics of some rows.
        divisible: whether it can run on a part of the batch.
        busy: a row of the batch settles, which takes a forward of its own.
    """

    step: int
    streams: Sequence[Hashable]
    where: StepRows
    frames: Any
    output: Any
    forward: Callable[[Any, StepRows], Any]
    divisible: bool
    busy: bool = False


class GuardBook:
    """The guard of one processor's streams.

    Args:
        guard: what it may cost and when it acts; None: there is none.
        engine: whose rows it looks after.
        outbox: where its acts are told.
        readouts: brings comparisons to the host.
        phase_of: of a row, as far as it is known.
        class_scores: outputs may be judged as such.

    Attributes:
        guard: as given.
        failure: why answers could not be compared the last time; None if they could.
    """

    def __init__(
        self,
        guard: Guard | None,
        *,
        engine: AdaptationEngine,
        outbox: Outbox,
        readouts: Readouts,
        phase_of: Callable[[int], Phase | None],
        class_scores: bool,
    ) -> None:
        self.guard, self._engine, self._outbox = guard, engine, outbox
        self._readouts, self._phase_of = readouts, phase_of
        self._streams: dict[int, Watched] = {}
        self._versions = itertools.count()  # of the statistics, over all rows and their owners
        self._judges = class_scores or (guard is not None and guard.health is not None)
        self.failure: str | None = None
        if guard is not None:
            rows = engine.bank.rows
            self._acts = Acts(engine=engine, outbox=outbox)
            self._device = engine.device
            self._gate = FrameGate(rows=rows, device=engine.device) if guard.quality else None
            self._evidence = Evidence(rows, health=guard.health)
            self._answers = AnswerBook()
            self._looks = Looks(rows)

    # Before the forward ------------------------------------------------------------------------

    def act(self, step: int) -> None:
        """Do what was decided since the last step."""
        if self.guard is not None:
            self._acts.act(step, self._streams)

    def admit(
        self,
        step: int,
        frames: Any,
        counts: Mapping[Hashable, int],
        where: StepRows,
    ) -> StepRows:
        """Judge frames, and let time pass; the same rows, with what is not to be learned from.

        `counts`: frames of each stream, in the order of the rows.
        """
        if self.guard is None:
            return where
        for (stream, count), row, elapsed in zip(
            counts.items(), where.rows, where.elapsed_seconds, strict=True
        ):
            one = self._of(row)
            one.seen += count
            one.steps += 1
            one.spacing.pass_time(elapsed)
            if one.ladder.seen(count, elapsed) is not None:
                self._acts.tell(step, stream, one, "unpin", None)
        held = tuple(self._of(row).ladder.holds for row in where.rows)
        quality, gated = self._judge(step, frames, tuple(counts), where)
        held_or_none = held if any(held) else None
        if quality is None or gated is None:
            quality, gated = where.quality, where.gated
        elif where.quality is not None and where.gated is not None:
            quality, gated = quality * where.quality, gated + where.gated
        return replace(where, quality=quality, gated=gated, held=held_or_none)

    def _judge(
        self, step: int, frames: Any, streams: Sequence[Hashable], where: StepRows
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if self._gate is None:
            return None, None
        if self._device != self._engine.device:
            self._device = self._engine.device
            self._gate.to(self._device)
        judged = self._gate.judge(
            frames,
            where.rows,
            where.entries,
            where.elapsed_seconds,
            valid=where.valid,
            usable=where.quality,
        )
        if judged is None:
            return None, None

        def receive(counts: Tensor) -> None:
            for stream, row in zip(streams, counts.tolist(), strict=True):
                for reason, count in zip(_REASONS, row[1:], strict=True):
                    if count:
                        self._outbox.post(
                            FramesRejected(step=step, stream=stream, frames=count, reason=reason)
                        )

        self._readouts.submit(judged.counts, receive)
        return judged.weights, judged.counts[:, 1:].sum(dim=1)

    # After the commit --------------------------------------------------------------------------

    def watch(self, now: Comparing) -> None:
        """Look at a step's answers, and compare some of them with the source's where it is due."""
        if self.guard is None or not self._judges or not now.where.batch:
            return
        self._look(now)
        self._keep_states(now.where)
        chosen = self._chosen(now.where, busy=now.busy)
        if not chosen:
            return
        whole = list(range(now.where.batch))
        asked = chosen if now.divisible else whole
        try:
            source = now.forward(some_frames(now.frames, asked), rows_of_some(now.where, asked))
            if asked is not chosen:
                source = some_frames(source, chosen)
            part, output = rows_of_some(now.where, chosen), some_frames(now.output, chosen)
            self.compare(now.step, now.streams, part, output, source)
        except Exception as error:
            self.failure = f"answers cannot be compared: {one_line(error)}"
            self._outbox.post(GuardFailed(step=now.step, error=one_line(error)))
        else:
            self.failure = None

    def compare(
        self,
        step: int,
        streams: Sequence[Hashable],
        where: StepRows,
        adapted: Any,
        source: Any,
    ) -> None:
        """Take in the answers to the same frames on adapted and on source statistics."""
        if self.guard is None:
            return
        if real_frames_of(where) < (where.batch or 0):
            real = list(range(real_frames_of(where)))
            adapted, source = some_frames(adapted, real), some_frames(source, real)
            where = rows_of_some(where, real)
        if not where.batch:
            return
        entries = where.entries or [0] * where.batch
        steps = [self._of(row).steps for row in where.rows]
        found = self._evidence.add(steps, where.rows, entries, adapted, source)
        if found is None:
            self._judges = False
            return
        counts = [0] * len(where.rows)
        for entry in entries:
            counts[entry] += 1
        named, rows = tuple(streams), tuple(where.rows)
        of = [self._of(row) for row in rows]

        def receive(values: Tensor) -> None:
            for stream, row, one, new, (gain, frames, agreement, alike) in zip(
                named, rows, of, counts, values.tolist(), strict=True
            ):
                if not new or self._streams.get(row) is not one:
                    continue
                one.gain, one.agreement = gain, agreement
                if self._engine.has_phases:
                    one.spacing.measured(alike)
                if one.labelled.enough:
                    one.gain = one.labelled.gain
                self._outbox.post(
                    AnswersCompared(
                        step=step,
                        stream=stream,
                        frames=new,
                        gain=gain,
                        agreement=None if math.isnan(agreement) else agreement,
                    )
                )
                if not one.labelled.enough:
                    self._acts.judged(row, stream, one, Comparison(gain, frames, alike), new)

        self._readouts.submit(found, receive)
        if where.ids is not None:
            keep_answers(
                self._answers,
                self._readouts,
                where.ids,
                [(named[entry], rows[entry], of[entry].version) for entry in entries],
                adapted,
                source,
            )

    def reveal(self, step: int, ids: Sequence[Hashable], labels: Sequence[int]) -> int:
        """Take labels in; how many of them are of frames that are known.

        Raises:
            ConfigurationError: there is no guard.
        """
        if self.guard is None:
            raise ConfigurationError("Labels are the guard's: give the processor `guard=`.")
        found = self._answers.take(ids, labels)
        told: dict[Hashable, list[tuple[bool, bool]]] = {}
        for answered, label in found:
            right = answered.adapted == label, answered.source == label
            told.setdefault(answered.stream, []).append(right)
            one = self._streams.get(answered.row)
            if one is None or one.version != answered.version:
                continue  # of statistics that are not in use any more, or of another stream
            one.labelled.add(*right)
            if one.labelled.enough:
                one.gain = one.labelled.gain
                now = Comparison(one.gain, one.labelled.frames, labelled=True)
                self._acts.judged(answered.row, answered.stream, one, now, 1.0)
        for stream, rights in told.items():
            self._outbox.post(
                LabelsRevealed(
                    step=step,
                    stream=stream,
                    frames=len(rights),
                    right=sum(one for one, _ in rights),
                    source_right=sum(other for _, other in rights),
                )
            )
        return len(found)

    def suspect(self, row: int) -> None:
        """Something happened to a row that may have made its answers worse."""
        if self.guard is not None:
            self._of(row).ladder.suspect()

    def phase_changed(self, step: int, stream: Hashable, row: int, now: Phase) -> None:
        """The estimator of a row took up something else."""
        if self.guard is None:
            return
        self._evidence.forget([row])
        one = self._of(row)
        one.ring.clear()
        if now == "following":
            one.ladder.renewed()
        elif one.ladder.on_source() is not None:
            self._acts.tell(step, stream, one, "release", None)

    def displaced(self, rows: Iterable[int]) -> None:
        """Rows were put on another state."""
        if self.guard is None:
            return
        rows = list(rows)
        self._evidence.forget(rows)
        for row in rows:
            if row in self._streams:
                self._streams[row].version = next(self._versions)
                self._streams[row].labelled.clear()

    def released(self, rows: Iterable[int]) -> None:
        """Rows were put on another state by the user, who knows better."""
        for row in rows:
            if row in self._streams and self._streams[row].ladder.state != "watching":
                del self._streams[row]

    def owners_changed(self, rows: Sequence[int]) -> None:
        """Rows belong to other streams."""
        if self.guard is None:
            return
        if self._gate is not None:
            self._gate.forget(rows)
        self._looks.forget(rows)
        for row in rows:
            self._streams.pop(row, None)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What keeps statistics from being updated, in words."""
        held = sum(one.ladder.holds for one in self._streams.values())
        found = [f"updates of {held} stream{'s' * (held != 1)} are held by the guard"] * bool(held)
        return (*found, *([] if self.failure is None else [self.failure]))

    def of(self, row: int) -> Guarded | None:
        """What is known of a row; None without a guard."""
        if self.guard is None:
            return None
        one = self._streams.get(row)
        if one is None:
            return Guarded("watching")
        return Guarded(one.ladder.state, one.gain, one.agreement, one.health)

    # Inside ------------------------------------------------------------------------------------

    def _of(self, row: int) -> Watched:
        if row not in self._streams:
            assert self.guard is not None
            ladder = Ladder(self.guard, settles=self._engine.has_phases)
            ring = StateRing(self.guard.snapshots)
            self._streams[row] = Watched(ladder, ring, version=next(self._versions))
        return self._streams[row]

    def _adapted(self, row: int) -> bool:
        """Whether a row may be on other statistics than the source's."""
        if not self._engine.has_phases:
            return True
        return self._phase_of(row) == "following"

    def _chosen(self, where: StepRows, *, busy: bool) -> list[int]:
        """Frames of the batch to compare, in their order."""
        compares = [self._compares(row, busy=busy) for row in where.rows]
        if where.ids is None and not any(compares):
            return []
        entries = (where.entries or [0] * (where.batch or 0))[: real_frames_of(where)]
        places: list[list[int]] = [[] for _ in where.rows]
        for place, entry in enumerate(entries):
            places[entry].append(place)
        chosen: set[int] = set()
        rows = zip(where.rows, compares, places, where.elapsed_seconds, strict=True)
        for row, is_compared, own, elapsed in rows:
            if is_compared:
                chosen.update(self._of(row).spacing.choose(own, elapsed))
        if where.ids is not None:
            chosen.update(k for k, _ in enumerate(entries) if where.ids[k] is not None)
        return sorted(chosen)

    def _compares(self, row: int, *, busy: bool) -> bool:
        """Whether a row's frames are compared; routine takes its time while another row settles."""
        one = self._of(row)
        if busy and one.ladder.state == "watching" and one.steps % _BUSY_STEPS:
            return False
        return one.ladder.compares and self._adapted(row)

    def _keep_states(self, where: StepRows) -> None:
        """Copies of rows that nothing is wrong with."""
        for row in where.rows:
            one = self._of(row)
            calm = one.ladder.state == "watching" and not one.ladder.compares
            if calm and self._adapted(row) and one.ring.due(one.seen):
                one.ring.add(one.seen, self._engine.bank.capture([row]))

    def _look(self, now: Comparing) -> None:
        """At adapted answers alone."""
        real, where = real_frames_of(now.where), now.where
        if not real or not self._looks.due(where.rows, where.elapsed_seconds):
            return
        entries = list(where.entries or [0] * real)[:real]
        steps = [self._of(row).steps for row in where.rows]
        output = some_frames(now.output, range(real)) if real != where.batch else now.output
        values = self._looks.look(steps, where.rows, entries, output)
        if values is None:
            return
        rows = tuple(where.rows)
        of = [self._of(row) for row in rows]
        frames = [float(entries.count(k)) for k in range(len(rows))]

        def receive(arrived: Tensor) -> None:
            for row, one, new, each in zip(rows, of, frames, arrived.tolist(), strict=True):
                if self._streams.get(row) is one and new:
                    one.health, suspicious = self._looks.read(row, new, each)
                    if suspicious and self._adapted(row):
                        one.ladder.suspect()

        self._readouts.submit(values, receive)
