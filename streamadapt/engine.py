"""One model's adaptation: tap, bank, binding and estimator, joined into arm -> forward -> commit.

Knows tensors and rows. Streams, locks, events and time belong to the processor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streamadapt.alignment.features import FeatureMoments
from streamadapt.alignment.head import AlignedHead
from streamadapt.bank import Rows, RowState, State, StatisticsBank
from streamadapt.committing import DeviceCommit, KernelCommit, Written, choose_commit
from streamadapt.drift import location_scale_distance
from streamadapt.drift.scores import observed_distances
from streamadapt.errors import ConfigurationError, ModelStateError
from streamadapt.estimators import Estimator, Observation
from streamadapt.estimators.base import OneLayer, Timing
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments
from streamadapt.ops.compiled import Kernels
from streamadapt.ops.device import DeviceOperations
from streamadapt.ops.reduce import FrameMoments, reduce_frames
from streamadapt.taps import BufferBinding, Inventory, ModelTap, Staging, Step, verify_remappable
from streamadapt.taps.device import DeviceTables
from streamadapt.taps.folded import FoldedLayer
from streamadapt.taps.fused import FusedTables
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
from streamadapt.weighing import FrameWeighing, StepRows

Origin = Literal["source", "restored"]


@dataclass(frozen=True, eq=False)
class Committed:
    """What a step brought to the bank.

    Attributes:
        verdict: the bank's, `[rows]`: see `StatisticsBank.commit`.
        moments: of each row's accepted frames, `[rows, channels]` float64; `count` is `frames`.
        frames: `[rows, 1]` float64, accepted frames.
        positions: `[layers]` float64, of one frame; zero where a layer was not executed.
        weights: `[rows, entries]` float64, which frames were asked of which row, without those
            whose features were not finite.
        trust: `[entries]` float64, how much each frame counted; None: all alike.
        healthy: `[rows, 1]` float64, see `Observation`.
        phase: `[rows]` float64, the rows' phases after it; None where the estimator has none.
    """

    verdict: Tensor
    moments: Moments
    frames: Tensor
    positions: Tensor
    weights: Tensor
    trust: Tensor | None
    healthy: Tensor | None
    phase: Tensor | None


@dataclass(frozen=True)
class Repair:
    """What `reconcile` found: `source_replaced`, or only moved to another device or dtype."""

    source_replaced: bool
    device: str
    dtypes: tuple[str, ...]


class AdaptationEngine:
    """Statistics of `rows` streams for the layers of one model.

    Args:
        inventory: the model's layers; must be adaptable.
        estimator: the update rule.
        timing: when new statistics take effect.
        rows: number of streams.
        bound: let the model read row 0 itself instead of moving its inputs.
        frames_per_row: leading-dimension items that a layer has for each batch entry.
        head: the classifier head whose input is aligned, or None.
        kernels: that normalise and take moments in one pass; None: PyTorch's are used.
        model: what its layers are part of, to do in one pass with them what follows them.
        refold_every: commits from one folding of statistics into weights to the next.

    Attributes:
        source_version: how often the source was replaced.
        displaced: rows whose state was put there otherwise than by a step, and from where; a
            journal takes out what it has written down.
        on_displaced: called with such rows.
        on_kernels_unavailable: called with the reason when kernels fail; PyTorch does the rest.
    """

    def __init__(
        self,
        inventory: Inventory,
        *,
        estimator: Estimator,
        timing: Timing,
        rows: int,
        bound: bool,
        frames_per_row: int,
        head: AlignedHead | None = None,
        kernels: Kernels | DeviceOperations | None = None,
        model: nn.Module | None = None,
        refold_every: int = 8,
    ) -> None:
        self.layers = inventory.layers
        self.estimator = estimator
        self.timing = timing
        self._frames_per_row = frames_per_row
        self.layout = BankLayout([(one.name, one.channels, one.eps) for one in self.layers])
        self.bank = StatisticsBank(
            self.layout,
            rows=rows,
            source=[layer.buffers for layer in self.layers],
            device=self.layers[0].buffers[0].device,
            compensated=estimator.compensated,
            counted=estimator.counted,
            scalars=estimator.scalars,
            aside=estimator.aside,
        )
        if not bound or self._phase([0]) is not None:  # a settling pass moves inputs as well
            self._verify_remappable()
        self._last_phase: float | None = None
        self.source_version = 0
        self.displaced: dict[int, Origin] = dict.fromkeys(range(rows), "source")
        self.on_displaced: Callable[[Iterable[int]], None] = lambda rows: None
        self.head = head
        if head is not None:
            head.require_device(self.device)
            self.bank.companion = head.rows
        self._staging = Staging(self.layout)
        self.on_kernels_unavailable: Callable[[str], None] = lambda reason: None
        self._given_kernels = kernels
        self._commits = self._choose_commit()
        correction = estimator.correction
        self._thresholds = () if correction is None else correction.thresholds(len(self.layers))
        self._weighing = FrameWeighing(self.layout, estimator, self.device)
        self.tables: Tables | None = None
        if isinstance(kernels, DeviceOperations):
            self.tables = DeviceTables(self.layers, self.layout, kernels)
        elif kernels is not None:
            measured = len(self._thresholds)
            self.tables = FusedTables(self.layers, self.layout, kernels, measured=measured)
        self.tap = ModelTap(self.layers)
        self.tap.packs, self.tap.bound = kernels is not None, bound
        self.folded = None
        if any(layer.kind == "folded" for layer in self.layers):
            self.folded = Refolding(self.layers, self.bank, every=refold_every)
        self.binding = BufferBinding(self.layers, self.folded)
        self.owners = None
        if self.tables is not None and model is not None:
            self.owners = OwnerTaps(model, self.layers, self.tap, paused=self._paused)
            self.owners.install()
        self.tap.install()
        if head is not None:
            head.install()
        if bound:
            self.binding.bind(self.bank, 0)

    @property
    def device(self) -> torch.device:
        """Where the model's statistics live."""
        return self.bank.device

    @property
    def backend(self) -> str:
        """How layers are normalised and looked at."""
        return "hooks" if self._kernels is None else self._kernels.name

    def manners(self) -> list[str]:
        """How each layer's moments get out."""
        kernels = self._kernels
        together = {} if self.owners is None else self.owners.manners()
        found = []
        for index, layer in enumerate(self.layers):
            if layer.kind == "folded":
                found.append("folded")
            elif kernels is not None and kernels.plain[index]:
                kind = kernels.name.split()[0]
                found.append(f"{kind}: {together.get(index, 'BatchNorm')}")
            else:
                found.append("hooks")
        return found

    @property
    def _kernels(self) -> Tables | None:
        """Those that normalise where the model is now; None: there are none."""
        tables = self.tables
        return None if tables is None or not tables.serves(self.device) else tables

    @property
    def has_phases(self) -> bool:
        """Whether the estimator settles, follows and rests."""
        return self._phase([0]) is not None

    @property
    def needs_arming(self) -> bool:
        """Whether a forward on committed state alone needs an armed tap."""
        corrects = self.estimator.correction is not None
        return corrects or self.head is not None or not self.binding.bound

    def refresh(self) -> None:
        """See what became of the layers' weights, before a step that does not look itself."""
        if self._kernels is not None:
            self._kernels.refresh(self.device)

    def check_mode(self) -> None:
        """Refuse a layer in training mode (`ModelStateError`)."""
        for layer in self.layers:
            if layer.training:
                layer.require_inference()

    def reconcile(self) -> Repair | None:
        """Follow what was done to the model's buffers from outside since the last step.

        Moves (`.to()`, `.half()`) are followed; values that changed become the new source.
        """
        binding = self.binding
        if not binding.loaded and binding.intact():
            return None
        held = binding.current()
        device = held[0][0].device
        if any(buffer.device != device for pair in held for buffer in pair):
            raise ModelStateError(
                "The model's BatchNorm layers are on several devices now. Put the whole model on "
                "one device."
            )
        replaced = binding.loaded or not binding.only_converted()
        if device != self.device:
            self.bank.to(device)
            self.tap.moved(device)
            if self.head is not None:
                self.head.moved(device)
            self._weighing = FrameWeighing(self.layout, self.estimator, device)
            self._commits = self._choose_commit()
        if replaced:
            values = [(mean.detach().clone(), var.detach().clone()) for mean, var in held]
            self.bank.set_source(values)
            self._displace(range(self.bank.rows), "source")
            self.source_version += 1
            binding.adopt_source(values)
        binding.loaded = False
        if binding.bound:
            binding.bind(self.bank, 0)
        else:
            binding.adopt_held()
            if not replaced:
                # What the model holds may be rounded; inputs must be moved onto exactly that.
                self.bank.set_source(held, reset_rows=False)
                if self.folded is not None:
                    self.folded.adopt()
        dtypes = sorted({str(mean.dtype).removeprefix("torch.") for mean, _ in held})
        return Repair(replaced, str(device), tuple(dtypes))

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
            self.layout,
            entries=entries,
            rows=where.row_of_entries(self.device),
            frames_per_row=self._frames_per_row,
            observe=observe,
            staging=self._staging if staging is None else staging,
            exact=self.estimator.compensated,
        )
        step.settling, step.folded = settling, self.folded
        now = settling is not None or (observe and self._waits(where, entries))
        plain = settling is not None or source or not correct
        correction = None if plain else self.estimator.correction
        bound = self.binding.bound
        moves = now or source or not bound
        statistics = None
        if moves or correction is not None:
            with torch.inference_mode(False), torch.no_grad():
                statistics = self._statistics(step, where, now=now, source=source)
            if moves:
                step.coefficients = statistics.coefficients
            if correction is not None:
                step.own = FramesOwn(statistics, self._thresholds, self.layout)
        kernels = self._kernels
        if kernels is not None and not torch.is_grad_enabled():
            step.fused = kernels.arm(
                step,
                self.bank,
                where.places,
                statistics=statistics,
                bound=bound,
                now=now,
                source=source,
            )
        self.tap.remapping = step.coefficients is not None or step.own is not None
        self.tap.step = step
        if self.head is not None:
            observe = observe and settling is None
            step.head = self.head.arm(where.rows, where.entries, observe=observe)
        try:
            yield step
            if step.fused is not None:
                step.fused.finish()
        finally:
            if self.head is not None:
                self.head.disarm()
            self.tap.step = None
            self.tap.remapping = False
            step.fused = None  # they know one another, and nobody else is to be asked to part them

    def _waits(self, where: StepRows, entries: int | None) -> bool:
        """Whether layers are normalised with what the estimator makes of the batch at them."""
        if self.timing != "synchronous":
            return False
        scalars = self.bank.scalars_of(where.places)
        if entries is None or not host_sees(self.bank.tallies):
            return True
        with torch.inference_mode(False), torch.no_grad():
            frames = self._weighing.weights(where, entries, None).sum(dim=1, keepdim=True)
            moves = self.estimator.may_move(scalars, frames, self._weighing.elapsed(where))
            return moves is None or bool(moves.any())

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """The model runs as if no step were armed."""
        step, head = self.tap.step, None if self.head is None else self.head.step
        self.tap.step = None
        if self.head is not None:
            self.head.step, aligning, self.head.aligning = None, self.head.aligning, False
        try:
            yield
        finally:
            self.tap.step = step
            if self.head is not None:
                self.head.step, self.head.aligning = head, aligning

    def commit(
        self,
        step: Step,
        where: StepRows,
        *,
        healthy: Tensor | None = None,
    ) -> Committed:
        """Reduce what `step` staged and write it, for all layers of a row or for none.

        Args:
            step: of a forward that has returned.
            where: its rows.
            healthy: the observation's, of a settling pass.
        """
        if step.failure is not None:
            raise step.failure
        with torch.inference_mode(False), torch.no_grad():
            observed = step.all_moments()
            weights = self._weighing.weights(where, observed.mean.shape[0], step.settling)
            head = None if step.settling is not None else step.head
            if head is not None:
                weights = head.weigh(weights)
            if self._plain_commit(step):
                written = self._commit_by_kernels(where, observed, weights)
                if written is not None:
                    return self._committed(step, written, observed, weights)
            state = self.bank.read(where.places)
            trust = self._weighing.trust(observed, weights, state, step.settling)
            reduced = reduce_frames(observed, weights, trust)
            aligned = None if head is None else head.propose(reduced)
            new = self.estimator.step(
                state,
                Observation(
                    reduced.moments,
                    reduced.frames,
                    self._weighing.elapsed(where),
                    self.layout,
                    settling=step.settling is not None,
                    healthy=healthy,
                ),
            )
            verdict = self.bank.commit(
                where.places,
                new,
                frames=self._weighing.accepted(where, reduced.frames),
                positions=observed.layer_positions,
                unobserved=bool(step.unobserved),
                sound=None if aligned is None else aligned.sound,
                again=step.settling is not None,
            )
            if aligned is not None:
                aligned.write(verdict)
            phase = self._phase(where.places)
            self._bring_back(step, phase)
            return Committed(
                verdict,
                replace(reduced.moments, count=reduced.frames),
                reduced.frames,
                observed.layer_positions,
                weights,
                trust,
                healthy,
                phase,
            )

    def apart(self, committed: Committed) -> Tensor:
        """How far what a step saw lies from the source; see `observed_distances`."""
        with torch.inference_mode(False), torch.no_grad():
            return observed_distances(
                committed.moments,
                self.bank.source_moments,
                committed.frames,
                committed.positions,
                self.layout,
            )

    def retune(self, estimator: Estimator) -> bool:
        """Go on with other settings of the same rule; what is known of the rows stays.

        Returns:
            Whether steps that were captured obey.

        Raises:
            ConfigurationError: another rule, or one that asks for other state.
        """
        before = self.estimator
        for name in ("aside", "compensated", "counted", "robust", "uses_time"):
            if getattr(before, name) != getattr(estimator, name):
                raise ConfigurationError(
                    f"{estimator!r} needs other state than {before!r}: `{name}` differs. Use a new "
                    "StreamProcessor."
                )
        if type(before) is not type(estimator) or before.scalars.keys() != estimator.scalars.keys():
            raise ConfigurationError(
                f"{estimator!r} is another rule than {before!r}. Use a new StreamProcessor."
            )
        corrects = [
            () if one.correction is None else one.correction.thresholds(len(self.layers))
            for one in (before, estimator)
        ]
        if len(corrects[0]) != len(corrects[1]):
            raise ConfigurationError(
                f"{estimator!r} corrects single frames in other layers than {before!r}. Use a new "
                "StreamProcessor."
            )
        obeys = (
            self.timing == "lagged"
            and corrects[0] == corrects[1]
            and isinstance(self._commits, DeviceCommit)
            and self._commits.adopt(estimator)
        )
        self.estimator, self._thresholds = estimator, corrects[1]
        self.bank.start_with(estimator.scalars)
        if not obeys:
            self._commits = self._choose_commit()
        return obeys

    def _choose_commit(self) -> KernelCommit | None:
        return choose_commit(
            self._given_kernels,
            self.estimator,
            self.layout,
            self.bank,
            on_failure=lambda reason: self.on_kernels_unavailable(reason),
        )

    def _plain_commit(self, step: Step) -> bool:
        """Whether kernels do what a step asks for."""
        usual = step.settling is None and step.head is None and not step.unobserved
        return usual and self._commits is not None

    def _commit_by_kernels(
        self, where: StepRows, observed: FrameMoments, weights: Tensor
    ) -> Written | None:
        assert self._commits is not None
        elapsed, control = self._weighing.elapsed(where), where.control
        rows: Rows = where.rows if control is None else control.numbers
        held = where.held if control is None else control.allowed
        return self._commits(rows, observed, weights, elapsed=elapsed, held=held)

    def _committed(
        self, step: Step, written: Written, observed: FrameMoments, weights: Tensor
    ) -> Committed:
        self._bring_back(step, written.phase)
        return Committed(
            written.verdict,
            written.moments,
            written.frames,
            observed.layer_positions,
            weights,
            written.trust,
            None,
            written.phase,
        )

    def _bring_back(self, step: Step, phase: Tensor | None) -> None:
        """Let the model have what was committed.

        Weights wait for their turn, but not where a row settles, or went over to something else,
        nor where seeing that would mean waiting for the device.
        """
        at_once = step.settling is not None or self.device.type != "cpu"
        if self.folded is not None and phase is not None and not at_once:
            now = float(phase[0])
            at_once, self._last_phase = now != self._last_phase, now
        self.binding.committed(at_once=at_once)

    def reset(self, rows: Sequence[int] | range) -> None:
        """Put rows back on the source."""
        self.bank.reset(rows)
        self._displace(rows, "source")
        self.binding.write_back()

    def restore(self, rows: Sequence[int], saved: RowState) -> None:
        """Put captured rows back."""
        if len(rows) > 0:
            self.bank.restore(rows, saved)
            self._displace(rows, "restored")
            self.binding.write_back()

    def shrink(self, rows: Sequence[int], share: float) -> None:
        """Draw rows a part of the way to the source: means, and logarithms of variances."""
        with torch.inference_mode(False), torch.no_grad():
            for row in rows:
                source, held = self.bank.source, self.bank.data[row]
                self.bank.data[row, 0] = held[0].lerp(source[0], share)
                floor = torch.finfo(torch.float32).tiny
                logs = held[1].clamp(min=floor).log().lerp(source[1].clamp(min=floor).log(), share)
                self.bank.data[row, 1] = torch.where(held[1] == source[1], held[1], logs.exp())
                if self.bank.compensated:
                    self.bank.data[row, 2:4] = 0.0
        self._displace(rows, "restored")
        self.binding.write_back()

    def _displace(self, rows: Sequence[int] | range, origin: Origin) -> None:
        self.displaced |= dict.fromkeys(rows, origin)
        self.on_displaced(rows)

    def write_layer(self, row: int, index: int, moments: Moments) -> None:
        """Set one layer of a row to `moments`, `[channels]`."""
        span = self.layout.layers[index].span
        with torch.inference_mode(False), torch.no_grad():
            self.bank.data[row, 0, span] = moments.mean.float()
            self.bank.data[row, 1, span] = moments.var.float()
            self.displaced[row] = "restored"
        if self.folded is not None:
            self.binding.write_back()

    def distances(self, row: int) -> Tensor:
        """Location-scale distance of a row from the source, `[layers]` float64."""
        with torch.inference_mode(False), torch.no_grad():
            state = self.bank.read([row])
            distance = location_scale_distance(state.moments, state.source, self.layout.eps)
            return self.layout.mean_per_layer(distance)[0]

    def moments(self, row: int) -> dict[str, Moments]:
        """A copy of a row's statistics, by layer, float64."""
        with torch.inference_mode(False), torch.no_grad():
            whole = self.bank.read([row]).moments
            return {
                layer.name: Moments(
                    *(t[0, layer.span].clone() for t in (whole.count, whole.mean, whole.var))
                )
                for layer in self.layout.layers
            }

    def feature_moments(self, row: int) -> FeatureMoments:
        """A copy of a row's moments of the aligned head's input, float64."""
        assert self.head is not None
        with torch.inference_mode(False), torch.no_grad():
            rows = self.head.rows
            return FeatureMoments(
                float(self.bank.frames[row]), rows.mean[row].clone(), rows.covariance[row].double()
            )

    def set_bound(self, bound: bool) -> None:
        """Let the model read row 0 itself, or give it the source back and move its inputs."""
        self.tap.bound = bound
        if bound and not self.binding.bound:
            self.binding.bind(self.bank, 0)
        elif not bound and self.binding.bound:
            self._verify_remappable()
            self.binding.unbind()

    def _verify_remappable(self) -> None:
        for layer in self.layers:
            verify_remappable(layer)

    def adapted_copy(self, model: nn.Module, row: int) -> nn.Module:
        """A plain copy of `model` with a row baked into compact buffers; no taps, no hooks."""
        with torch.inference_mode(False), torch.no_grad():
            memo: dict[int, Any] = {}
            for layer, (mean, var) in zip(self.layers, self.bank.views(row), strict=True):
                for held, wanted in zip(layer.buffers, (mean, var), strict=True):
                    memo[id(held)] = wanted.to(dtype=held.dtype, copy=True)
            inner = getattr(model, "_orig_mod", model)
            twin: nn.Module = copy.deepcopy(inner, memo)
            for layer in self.layers:
                self.tap.strip(memo[id(layer.module)])
                self.binding.strip(memo[id(layer.module)])
                if isinstance(memo[id(layer.module)], FoldedLayer):
                    memo[id(layer.module)].refold()
            if self.owners is not None:
                self.owners.strip(memo)
            if self.head is not None:
                self.head.bake(memo[id(self.head.module)], row)
            return twin

    def close(self) -> None:
        """Give the model back as it was."""
        if self.owners is not None:
            self.owners.remove()
        self.tap.remove()
        if self.head is not None:
            self.head.remove()
        self.binding.release()

    def _phase(self, rows: Rows) -> Tensor | None:
        phase = self.estimator.phase(self.bank.scalars_of(rows))
        return None if phase is None else phase[:, 0].clone()

    def _statistics(self, step: Step, where: StepRows, *, now: bool, source: bool) -> RowStatistics:
        """What the layers of a step are normalised with."""
        bound = self.binding.bound
        held = None
        if bound and self.folded is not None:
            own = self.bank.data[where.rows[0], :2]
            held = torch.where(self.folded.channels, self.folded.held, own).double()
        if not now:
            rows = where.places
            return CommittedStatistics(
                lambda: self.bank.read(rows), self.layout, bound=bound, source=source, held=held
            )
        elapsed = self._weighing.elapsed(where)

        def propose(index: int, state: State) -> Moments:
            return self._proposal(step, index, where, state, elapsed)

        return ProposedStatistics(
            lambda span: self.bank.read(where.places, span),
            propose,
            self.layout,
            bound=bound,
            held=held,
        )

    def _proposal(
        self, step: Step, index: int, where: StepRows, state: State, elapsed: Tensor
    ) -> Moments:
        observed = step.frame_moments(index)
        if observed is None:
            return state.moments
        weights = self._weighing.weights(where, observed.mean.shape[0], step.settling)
        settling = step.settling
        reduced = reduce_frames(observed, weights, None if settling is None else settling.trust)
        span = self.layout.layers[index].span
        layer = OneLayer(self.layout.eps[span], self.layout.depth[:, span])
        seen = Observation(
            reduced.moments, reduced.frames, elapsed, layer, settling=settling is not None
        )
        try:
            new = self.estimator.update(state, seen).moments
        except Exception as error:  # the caller's output comes first; reported with the commit
            step.failure = step.failure or error
            return state.moments
        usable = (
            torch.isfinite(new.mean).all(dim=1, keepdim=True)
            & torch.isfinite(new.var).all(dim=1, keepdim=True)
            & (self._weighing.accepted(where, reduced.frames) > 0)
        )
        return Moments(
            new.count,
            torch.where(usable, new.mean, state.moments.mean),
            torch.where(usable, new.var.clamp(min=0.0), state.moments.var),
        )
