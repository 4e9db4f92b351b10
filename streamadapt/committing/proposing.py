"""What the estimator makes of rows at one layer, before the step is committed."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.bank import State
from streamadapt.committing.compiled import CompiledCommit, CompiledProposals
from streamadapt.committing.steps import StepCommits
from streamadapt.estimators import Observation
from streamadapt.estimators.base import OneLayer
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments
from streamadapt.ops.reduce import reduce_frames
from streamadapt.taps import Step
from streamadapt.weighing import StepRows


class Proposals:
    """Proposals of one forward; what all its layers share is made out once.

    Args:
        step: of the forward.
        where: its rows.
        commits: whose estimator is asked, and who weighs frames.
        layout: the bank's.
    """

    def __init__(
        self, step: Step, where: StepRows, commits: StepCommits, layout: BankLayout
    ) -> None:
        self._step, self._where, self._layout = step, where, layout
        self._estimator, self._weighing = commits.estimator, commits.weighing
        self._elapsed = commits.weighing.elapsed(where)
        kernels = commits.by_kernels
        self._kernels = kernels if isinstance(kernels, CompiledCommit) else None
        self._weights: Tensor | None = None
        self._compiled: CompiledProposals | None = None

    def __call__(self, index: int, state: State) -> Moments:
        """Wanted moments of a layer, `[rows, channels]` float64; `state`: its rows' there.

        They are the state's for rows that would not be changed. An estimator that fails is reported
        with the commit: the caller's output comes first.
        """
        step, layout = self._step, self._layout
        observed = step.frame_moments(index)
        if observed is None:
            return state.moments
        settling, weights = step.settling, self._weigh(observed.mean.shape[0])
        trust = None if settling is None else settling.trust
        if self._compiled is not None:
            found = self._compiled.moments(index, observed.mean, observed.var)
            if found is not None:
                return Moments(state.moments.count, *found)
        reduced = reduce_frames(observed, weights, trust)
        span = layout.layers[index].span
        seen = Observation(
            reduced.moments,
            reduced.frames,
            self._elapsed,
            OneLayer(layout.eps[span], layout.depth[:, span]),
            settling=settling is not None,
        )
        try:
            new = self._estimator.update(state, seen).moments
        except Exception as error:
            step.failure = step.failure or error
            return state.moments
        # A value that is not finite makes the sum so, and zero times that is not zero.
        total = (new.mean + new.var).sum(dim=1, keepdim=True)
        accepted = self._weighing.accepted(self._where, reduced.frames)
        usable = (total * 0.0 == 0.0) & (accepted > 0)
        return Moments(
            new.count,
            torch.where(usable, new.mean, state.moments.mean),
            torch.where(usable, new.var.clamp(min=0.0), state.moments.var),
        )

    def writer(self, frames: int) -> CompiledProposals | None:
        """See `taps.statistics.Proposer`."""
        self._weigh(frames)
        return self._compiled

    def _weigh(self, frames: int) -> Tensor:
        settling = self._step.settling
        if self._weights is None or self._weights.shape[1] != frames:
            self._weights = self._weighing.weights(self._where, frames, settling)
            self._compiled = None
            if settling is not None and self._kernels is not None and self._where.control is None:
                self._compiled = self._kernels.proposals(
                    self._where.rows,
                    self._weights,
                    trust=settling.trust,
                    elapsed=self._elapsed,
                    held=self._where.held,
                )
        return self._weights
