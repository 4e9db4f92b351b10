"""Arms a model's tap for one forward: what its layers are normalised with, and who looks on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from streamadapt.alignment.head import AlignedHead
from streamadapt.bank import StatisticsBank
from streamadapt.committing import Proposals, StepCommits, thresholds
from streamadapt.estimators.base import Timing
from streamadapt.taps import BufferBinding, ModelTap, Staging, Step
from streamadapt.taps.kernels import Tables
from streamadapt.taps.owners import OwnerTaps
from streamadapt.taps.refolding import Refolding
from streamadapt.taps.statistics import (
    CommittedStatistics,
    FramesOwn,
    ProposedStatistics,
    RowStatistics,
)
from streamadapt.taps.step import Settling
from streamadapt.transfer import host_sees
from streamadapt.weighing import StepRows


class Arming:
    """Arms one model.

    Args:
        bank: whose rows its layers are normalised with.
        commits: whose estimator says with what, where that depends on the batch itself.
        tap: of the layers.
        binding: of their buffers.
        timing: when new statistics take effect.
        frames_per_row: leading-dimension items that a layer has for each batch entry.
        tables: of kernels that normalise; None: there are none.
        folded: layers that are folded; None: none is.
        head: the aligned one; None: there is none.

    Attributes:
        owners: taps of modules that do more than one layer at once; None: there are none.
    """

    def __init__(
        self,
        *,
        bank: StatisticsBank,
        commits: StepCommits,
        tap: ModelTap,
        binding: BufferBinding,
        timing: Timing,
        frames_per_row: int,
        tables: Tables | None,
        folded: Refolding | None,
        head: AlignedHead | None,
    ) -> None:
        self._bank, self._layout, self._commits = bank, bank.layout, commits
        self._tap, self._binding, self._timing = tap, binding, timing
        self._frames_per_row = frames_per_row
        self._tables, self._folded, self._head = tables, folded, head
        self._staging = Staging(self._layout)
        self.owners: OwnerTaps | None = None
        self.follow()

    def follow(self) -> None:
        """The estimator has other settings."""
        self._thresholds = thresholds(self._commits.estimator, len(self._layout.layers))

    @property
    def kernels(self) -> Tables | None:
        """Those that normalise where the model is now; None: there are none."""
        tables = self._tables
        return None if tables is None or not tables.serves(self._bank.device) else tables

    @contextmanager
    def armed(
        self,
        where: StepRows,
        *,
        entries: int | None,
        observe: bool,
        settling: Settling | None = None,
        source: bool = False,
        staging: Staging | None = None,
        correct: bool = True,
    ) -> Iterator[Step]:
        """Arm the tap for one forward of this thread.

        Args:
            where: rows of the batch.
            entries: batch size, or None where it cannot be told from the input.
            observe: stage moments; without it, inputs are only moved onto the rows' statistics.
            settling: the forward is a settling pass.
            source: normalise as the source, whatever the rows hold.
            staging: where moments go; None: where those of other steps go.
            correct: single frames, if the estimator does so.
        """
        step = Step(
            self._layout,
            entries=entries,
            rows=where.row_of_entries(self._bank.device),
            frames_per_row=self._frames_per_row,
            observe=observe,
            staging=self._staging if staging is None else staging,
            exact=self._commits.estimator.compensated,
        )
        step.settling, step.folded = settling, self._folded
        now = settling is not None or (observe and self._waits(where, entries))
        plain = settling is not None or source or not correct
        correction = None if plain else self._commits.estimator.correction
        bound = self._binding.bound
        moves = now or source or not bound
        statistics = None
        if moves or correction is not None:
            with torch.inference_mode(False), torch.no_grad():
                statistics = self._statistics(step, where, now=now, source=source)
            if moves:
                step.coefficients = statistics.coefficients
            if correction is not None:
                step.own = FramesOwn(statistics, self._thresholds, self._layout)
        kernels = self.kernels
        if self.owners is not None and not torch.is_grad_enabled():
            self.owners.look()
        if kernels is not None and not torch.is_grad_enabled():
            step.fused = kernels.arm(
                step,
                self._bank,
                where.places,
                statistics=statistics,
                bound=bound,
                now=now,
                source=source,
            )
        self._tap.remapping = step.coefficients is not None or step.own is not None
        self._tap.step = step
        if self._head is not None:
            observe = observe and settling is None
            step.head = self._head.arm(where.rows, where.entries, observe=observe)
        try:
            yield step
            if step.fused is not None:
                step.fused.finish()
        finally:
            if self._head is not None:
                self._head.disarm()
            self._tap.step = None
            self._tap.remapping = False
            step.fused = None  # they know one another, and nobody else is to be asked to part them

    def _waits(self, where: StepRows, entries: int | None) -> bool:
        """Whether layers are normalised with what the estimator makes of the batch at them."""
        if self._timing != "synchronous":
            return False
        scalars = self._bank.scalars_of(where.places)
        if entries is None or not host_sees(self._bank.tallies):
            return True
        with torch.inference_mode(False), torch.no_grad():
            frames = self._commits.weighing.weights(where, entries, None).sum(dim=1, keepdim=True)
            moves = self._commits.estimator.may_move(
                scalars, frames, self._commits.weighing.elapsed(where)
            )
            return moves is None or bool(moves.any())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model runs as if no step were armed."""
        step, head = self._tap.step, None if self._head is None else self._head.step
        self._tap.step = None
        if self._head is not None:
            self._head.step, aligning, self._head.aligning = None, self._head.aligning, False
        try:
            yield
        finally:
            self._tap.step = step
            if self._head is not None:
                self._head.step, self._head.aligning = head, aligning

    def _statistics(self, step: Step, where: StepRows, *, now: bool, source: bool) -> RowStatistics:
        """What the layers of a step are normalised with."""
        bound = self._binding.bound
        held = None
        if bound and self._folded is not None:
            own = self._bank.data[where.rows[0], :2]
            held = torch.where(self._folded.channels, self._folded.held, own).double()
        rows = where.places
        if not now:
            return CommittedStatistics(
                lambda: self._bank.read(rows), self._layout, bound=bound, source=source, held=held
            )
        return ProposedStatistics(
            lambda: self._bank.read(rows),
            Proposals(step, where, self._commits, self._layout),
            self._layout,
            bound=bound,
            held=held,
        )
