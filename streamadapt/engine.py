"""One model's adaptation: tap, bank, binding and estimator, joined into arm -> forward -> commit.

Knows tensors and rows. Streams, locks, events and time belong to the processor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streamadapt.alignment.features import FeatureMoments
from streamadapt.alignment.head import AlignedHead
from streamadapt.arming import Arming
from streamadapt.bank import RowState, StatisticsBank
from streamadapt.committing import Committed, StepCommits, thresholds
from streamadapt.drift import location_scale_distance
from streamadapt.errors import ModelStateError
from streamadapt.estimators import Estimator
from streamadapt.estimators.base import Timing
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments
from streamadapt.ops.compiled import Kernels
from streamadapt.ops.device import DeviceOperations
from streamadapt.taps import BufferBinding, Inventory, ModelTap, Step, verify_remappable
from streamadapt.taps.device import DeviceTables
from streamadapt.taps.folded import FoldedLayer
from streamadapt.taps.fused_tables import FusedTables
from streamadapt.taps.kernels import Tables
from streamadapt.taps.owners import OwnerTaps
from streamadapt.taps.refolding import Refolding
from streamadapt.weighing import StepRows

Origin = Literal["source", "restored"]


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
        packs: convolutions may run on packed weights, on the CPU.
        refold_every: commits from one folding of statistics into weights to the next.

    Attributes:
        source_version: how often the source was replaced.
        displaced: rows whose state was put there otherwise than by a step, and from where; a
            journal takes out what it has written down.
        on_displaced: called with such rows.
        commits: of steps.
        armed: arms the tap for one forward of this thread; see `Arming.armed`.
        has_phases: the estimator settles, follows and rests.
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
        packs: bool = False,
        refold_every: int = 8,
    ) -> None:
        self.layers = inventory.layers
        self.timing = timing
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
        self.commits = StepCommits(self.bank, estimator, kernels)
        self.has_phases = self.commits.phase([0]) is not None
        if not bound or self.has_phases:  # a settling pass moves inputs as well
            self._verify_remappable()
        self._last_phase: float | None = None
        self.source_version = 0
        self.displaced: dict[int, Origin] = dict.fromkeys(range(rows), "source")
        self.on_displaced: Callable[[Iterable[int]], None] = lambda rows: None
        self.head = head
        if head is not None:
            head.require_device(self.device)
            self.bank.companion = head.rows
        self.tables: Tables | None = None
        if isinstance(kernels, DeviceOperations):
            self.tables = DeviceTables(self.layers, self.layout, kernels)
        elif kernels is not None:
            measured = len(thresholds(estimator, len(self.layers)))
            self.tables = FusedTables(self.layers, self.layout, kernels, measured=measured)
        self.tap = ModelTap(self.layers)
        self.tap.packs, self.tap.bound = packs, bound
        self.folded = None
        if any(layer.kind == "folded" for layer in self.layers):
            self.folded = Refolding(self.layers, self.bank, every=refold_every)
        self.binding = BufferBinding(self.layers, self.folded)
        self._arming = Arming(
            bank=self.bank,
            commits=self.commits,
            tap=self.tap,
            binding=self.binding,
            timing=timing,
            frames_per_row=frames_per_row,
            tables=self.tables,
            folded=self.folded,
            head=head,
        )
        self.armed = self._arming.armed
        self.owners = None
        packs = packs and self.device.type == "cpu" and not isinstance(kernels, DeviceOperations)
        if model is not None and (self.tables is not None or packs):
            self.owners = OwnerTaps(
                model,
                self.layers,
                self.tap,
                kernels=kernels if isinstance(kernels, Kernels) else None,
                packs=packs,
                paused=self._arming.paused,
            )
            self.owners.install()
            self._arming.owners = self.owners
        self.tap.install()
        if head is not None:
            head.install()
        if bound:
            self.binding.bind(self.bank, 0)

    @property
    def estimator(self) -> Estimator:
        """The update rule, as it is set now."""
        return self.commits.estimator

    @property
    def device(self) -> torch.device:
        """Where the model's statistics live."""
        return self.bank.device

    @property
    def backend(self) -> str:
        """How layers are normalised and looked at."""
        return "hooks" if self._arming.kernels is None else self._arming.kernels.name

    def manners(self) -> list[str]:
        """How each layer's moments get out."""
        kernels = self._arming.kernels
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
    def needs_arming(self) -> bool:
        """Whether a forward on committed state alone needs an armed tap."""
        corrects = self.estimator.correction is not None
        return corrects or self.head is not None or not self.binding.bound

    def refresh(self) -> None:
        """See what became of the layers' weights, before a step that does not look itself."""
        if self._arming.kernels is not None:
            self._arming.kernels.refresh(self.device)

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
            self.commits.follow()
        if replaced:
            values = [(mean.detach().clone(), var.detach().clone()) for mean, var in held]
            self.bank.set_source(values)
            self._displace(range(self.bank.rows), "source")
            self.source_version += 1
            binding.adopt_source(values)
        self.refresh()
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

    def commit(self, step: Step, where: StepRows, *, healthy: Tensor | None = None) -> Committed:
        """Bring what `step` staged to the bank, and to the model; see `StepCommits`."""
        committed = self.commits(step, where, healthy=healthy)
        self._bring_back(step, committed.phase)
        return committed

    def retune(self, estimator: Estimator) -> bool:
        """Go on with other settings of the same rule; what is known of the rows stays.

        Returns:
            Whether steps that were captured obey.

        Raises:
            ConfigurationError: another rule, or settings that need other state.
        """
        obeys = self.commits.retune(estimator)
        self._arming.follow()
        return obeys and self.timing == "lagged"

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
