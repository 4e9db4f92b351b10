"""From what a step staged to the bank: by kernels where there are some, otherwise by PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from streamadapt.bank import Rows, StatisticsBank
from streamadapt.committing.choice import choose_commit
from streamadapt.committing.device import DeviceCommit
from streamadapt.committing.written import Committed
from streamadapt.drift.scores import observed_distances
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import Estimator, Observation
from streamadapt.moments import Moments
from streamadapt.ops.compiled import Kernels
from streamadapt.ops.device import DeviceOperations
from streamadapt.ops.reduce import FrameMoments, reduce_frames
from streamadapt.taps import Step
from streamadapt.taps.step import Settling
from streamadapt.weighing import FrameWeighing, StepRows


class StepCommits:
    """Commits of steps to one bank.

    Args:
        bank: whose rows are written.
        estimator: the update rule.
        kernels: those that normalise layers; those that commit belong to them.

    Attributes:
        estimator: the rule, as it is set now.
        weighing: which frames count how much.
        on_kernels_unavailable: called with the reason when kernels fail; PyTorch does the rest.
    """

    def __init__(
        self,
        bank: StatisticsBank,
        estimator: Estimator,
        kernels: Kernels | DeviceOperations | None,
    ) -> None:
        self._bank, self._layout, self._kernels = bank, bank.layout, kernels
        self.estimator = estimator
        self.on_kernels_unavailable: Callable[[str], None] = lambda reason: None
        self.follow()

    def follow(self) -> None:
        """The bank is on a device, or the estimator has settings, that it had not before."""
        self.weighing = FrameWeighing(self._layout, self.estimator, self._bank.device)
        self.by_kernels = choose_commit(
            self._kernels,
            self.estimator,
            self._layout,
            self._bank,
            on_failure=lambda reason: self.on_kernels_unavailable(reason),
        )

    def __call__(self, step: Step, where: StepRows, *, healthy: Tensor | None = None) -> Committed:
        """Reduce what `step` staged and write it, for all layers of a row or for none.

        Args:
            step: of a forward that has returned.
            where: its rows.
            healthy: the observation's, of a settling pass.
        """
        if step.failure is not None:
            raise step.failure
        settling = step.settling is not None
        with torch.inference_mode(False), torch.no_grad():
            observed = step.all_moments()
            weights = self.weighing.weights(where, observed.mean.shape[0], step.settling)
            head = None if settling else step.head
            if head is not None:
                weights = head.weigh(weights)
            if head is None and not step.unobserved:
                done = self._by_kernels(where, observed, weights, step.settling, healthy)
                if done is not None:
                    return done
            bank, elapsed = self._bank, self.weighing.elapsed(where)
            state = bank.read(where.places)
            trust = self.weighing.trust(observed, weights, state, step.settling)
            reduced = reduce_frames(observed, weights, trust)
            aligned = None if head is None else head.propose(reduced)
            seen = Observation(
                reduced.moments,
                reduced.frames,
                elapsed,
                self._layout,
                settling=settling,
                healthy=healthy,
            )
            verdict = bank.commit(
                where.places,
                self.estimator.step(state, seen),
                frames=self.weighing.accepted(where, reduced.frames),
                positions=observed.layer_positions,
                unobserved=bool(step.unobserved),
                sound=None if aligned is None else aligned.sound,
                again=settling,
            )
            if aligned is not None:
                aligned.write(verdict)
            moments = replace(reduced.moments, count=reduced.frames)
            if moments.mean is observed.mean:  # of a single frame: the next step writes over it
                moments = Moments(reduced.frames, moments.mean.clone(), moments.var.clone())
            return Committed(
                verdict,
                moments,
                reduced.frames,
                observed.layer_positions,
                weights,
                trust,
                healthy,
                self.phase(where.places),
            )

    def _by_kernels(
        self,
        where: StepRows,
        observed: FrameMoments,
        weights: Tensor,
        settling: Settling | None,
        healthy: Tensor | None,
    ) -> Committed | None:
        """None: there are no kernels for this step."""
        if self.by_kernels is None:
            return None
        elapsed, control = self.weighing.elapsed(where), where.control
        rows: Rows = where.rows if control is None else control.numbers
        held = where.held if control is None else control.allowed
        written = self.by_kernels(
            rows,
            observed,
            weights,
            elapsed=elapsed,
            held=held,
            settling=settling,
            healthy=healthy,
        )
        if written is None:
            return None
        return Committed(
            written.verdict,
            written.moments,
            written.frames,
            observed.layer_positions,
            weights,
            written.trust,
            healthy,
            written.phase,
        )

    def phase(self, rows: Rows) -> Tensor | None:
        """The phases of rows, `[rows]` float64; None where the estimator has none."""
        phase = self.estimator.phase(self._bank.scalars_of(rows))
        return None if phase is None else phase[:, 0].clone()

    def apart(self, committed: Committed) -> Tensor:
        """How far what a step saw lies from the source; see `observed_distances`."""
        with torch.inference_mode(False), torch.no_grad():
            return observed_distances(
                committed.moments,
                self._bank.source_moments,
                committed.frames,
                committed.positions,
                self._layout,
            )

    def retune(self, estimator: Estimator) -> bool:
        """Go on with other settings of the same rule; what is known of the rows stays.

        Returns:
            Whether commits that were captured obey.

        Raises:
            ConfigurationError: another rule, or settings that need other state.
        """
        before = self.estimator
        _require_same_state(before, estimator, layers=len(self._layout.layers))
        obeys = isinstance(self.by_kernels, DeviceCommit) and self.by_kernels.adopt(estimator)
        self.estimator = estimator
        self._bank.start_with(estimator.scalars)
        if not obeys:
            self.follow()
        return obeys and thresholds(before, len(self._layout.layers)) == thresholds(
            estimator, len(self._layout.layers)
        )


def thresholds(estimator: Estimator, layers: int) -> tuple[float, ...]:
    """Distances that are usual in layers that correct single frames."""
    return () if estimator.correction is None else estimator.correction.thresholds(layers)


def _require_same_state(before: Estimator, after: Estimator, *, layers: int) -> None:
    if type(before) is not type(after):
        raise ConfigurationError(
            f"{after!r} is another rule than {before!r}. Use a new StreamProcessor."
        )
    for name in ("aside", "compensated", "counted", "robust", "uses_time"):
        if getattr(before, name) != getattr(after, name):
            raise ConfigurationError(
                f"{after!r} needs other state than {before!r}: `{name}` differs. Use a new "
                "StreamProcessor."
            )
    if before.scalars.keys() != after.scalars.keys():
        raise ConfigurationError(
            f"{after!r} remembers other values than {before!r}. Use a new StreamProcessor."
        )
    if len(thresholds(before, layers)) != len(thresholds(after, layers)):
        raise ConfigurationError(
            f"{after!r} corrects single frames in other layers than {before!r}. Use a new "
            "StreamProcessor."
        )
