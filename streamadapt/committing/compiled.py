"""The default estimator's commit as one call of a compiled kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamadapt.bank import Rows, StatisticsBank
from streamadapt.committing.written import Written
from streamadapt.estimators import Estimator, Restarting
from streamadapt.layout import BankLayout, LayerSlice, layers_up_to
from streamadapt.moments import Moments
from streamadapt.ops.compiled import CommitCall, Kernels, ProposalCall
from streamadapt.ops.reduce import FrameMoments, shows_outliers
from streamadapt.taps.step import Settling

_KEPT = 4  # steps' moments

# In the order of the C enumeration.
_COLUMNS = (
    "phase",
    "settled_frames",
    "settled_seconds",
    "pending_frames",
    "pending_seconds",
    "blocks",
    "excess",
    "nearer",
    "recent",
    "insists",
    "level",
    "material",
    "rests",
)


class CompiledCommit:
    """Reduces a step's frames, moves the default estimator on, and writes the bank.

    Args:
        kernels: compiled.
        estimator: whose rule it is.
        layout: of the bank.
        bank: on the CPU.
    """

    def __init__(
        self, kernels: Kernels, estimator: Restarting, layout: BankLayout, bank: StatisticsBank
    ) -> None:
        self._kernels, self._bank = kernels, bank
        self._pooled: list[Tensor] = []
        layers = layout.layers
        first = bank.columns.scalars.start
        depth = layout.per_layer(layout.depth)[0]
        self._arrays = {
            "eps": np.array([one.eps for one in layers], dtype=np.float64),
            "memory": estimator.memory_seconds(depth).numpy().copy(),
            "prior": estimator.settling_prior(depth).numpy().copy(),
            "starts": np.array([one.start for one in layers], dtype=np.int64),
            "sizes": np.array([one.channels for one in layers], dtype=np.int64),
            "columns": np.array(
                [first + bank.scalar_names.index(name) for name in _COLUMNS], dtype=np.int64
            ),
        }
        self._layers = layers
        self._call = CommitCall(
            **{name: array.ctypes.data for name, array in self._arrays.items()},
            channels=layout.padded_channels,
            layers=len(layers),
            width=bank.columns.width,
            watched=layers_up_to(estimator.watch_depth, len(layers)),
            block_frames=estimator.block_frames,
            block_seconds=estimator.block_seconds,
            alarm=estimator.alarm,
            clip=estimator.clip,
            max_weight=estimator.max_weight,
            level=estimator.level,
            unlike=estimator.unlike,
            material=estimator.material,
            noise=estimator.noise,
            settling_seconds=estimator.settling_seconds,
            longer=max(estimator.doubtful_seconds - estimator.settling_seconds, 0.0),
        )

    device_type = "cpu"

    @classmethod
    def of(
        cls,
        kernels: object,
        estimator: Estimator,
        layout: BankLayout,
        bank: StatisticsBank,
    ) -> CompiledCommit | None:
        """For this estimator, if there is one."""
        if not isinstance(kernels, Kernels) or type(estimator) is not Restarting:
            return None
        return cls(kernels, estimator, layout, bank)

    def __call__(
        self,
        rows: Rows,
        observed: FrameMoments,
        weights: Tensor,
        *,
        elapsed: Tensor,
        held: Sequence[bool] | Tensor | None,
        settling: Settling | None = None,
        healthy: Tensor | None = None,
    ) -> Written | None:
        """See `KernelCommit`."""
        if isinstance(rows, Tensor) or isinstance(held, Tensor):
            return None  # what C writes is not part of what is captured
        bank, call = self._bank, self._call
        count, (batch, channels) = len(rows), observed.mean.shape
        weights, mean, var = (one.contiguous() for one in (weights, observed.mean, observed.var))
        pooled = self._next_pooled(count, channels)
        with torch.inference_mode(False):
            small = torch.empty(3, count, dtype=torch.float64)
            trust = torch.empty(batch, dtype=torch.float64)
        frames, verdict, phase = small
        places, allowed = _places(rows), _allowed(held)
        call.mean, call.var = mean.data_ptr(), var.data_ptr()
        call.weights, call.elapsed = weights.data_ptr(), elapsed.data_ptr()
        call.allowed = None if allowed is None else ctypes.addressof(allowed)
        call.rows = ctypes.addressof(places)
        call.data, call.tallies = bank.data.data_ptr(), bank.tallies.data_ptr()
        call.source = bank.source.data_ptr()
        call.positions = observed.layer_positions.data_ptr()
        call.pooled_mean, call.pooled_var = pooled[0].data_ptr(), pooled[1].data_ptr()
        call.frames, call.verdict, call.phase = (one.data_ptr() for one in (frames, verdict, phase))
        call.trust = trust.data_ptr()
        call.batch, call.row_count = batch, count
        given = None
        if settling is not None and settling.trust is not None:
            given = settling.trust.contiguous()
        call.settles = int(settling is not None)
        call.given = None if given is None else given.data_ptr()
        call.healthy = None if healthy is None else healthy.data_ptr()
        self._kernels.run_commit(call)
        if settling is not None:
            told = given
        else:
            told = trust if shows_outliers(batch) else None
        column = frames.unsqueeze(1)
        return Written(
            verdict,
            Moments(column, pooled[0], pooled[1]),
            column,
            told,
            phase,
        )

    def proposals(
        self,
        rows: Rows,
        weights: Tensor,
        *,
        trust: Tensor | None,
        elapsed: Tensor,
        held: Sequence[bool] | Tensor | None,
    ) -> CompiledProposals | None:
        """What a settling pass makes of each layer before the next one runs.

        Args:
            rows: of the bank.
            weights: as in a call.
            trust: how much each frame counts, `[frames]` float64; None: all alike.
            elapsed: as in a call.
            held: likewise.

        Returns:
            None where this step is not for it.
        """
        if isinstance(rows, Tensor) or isinstance(held, Tensor):
            return None
        columns = self._arrays["columns"]
        return CompiledProposals(
            self._kernels,
            self._layers,
            self._arrays["prior"],
            self._bank,
            rows,
            ProposalCall(
                channels=self._call.channels,
                width=self._call.width,
                phase=columns[_COLUMNS.index("phase")],
                settled_seconds=columns[_COLUMNS.index("settled_seconds")],
            ),
            weights,
            trust,
            elapsed,
            held,
        )

    def _next_pooled(self, rows: int, channels: int) -> Tensor:
        """Where moments of rows go: anew in each step, they would be mapped and faulted in anew.

        They are told of in the step that they are of, and in its settling pass at most.
        """
        kept = self._pooled
        if len(kept) < _KEPT or kept[0].shape != (2, rows, channels):
            with torch.inference_mode(False):
                found = torch.empty(2, rows, channels, dtype=torch.float64)
            kept.append(found)
            del kept[:-_KEPT]
            return found
        kept.append(kept.pop(0))
        return kept[-1]


class CompiledProposals:
    """See `CompiledCommit.proposals`, which makes it for one pass."""

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[LayerSlice],
        prior: NDArray[np.float64],
        bank: StatisticsBank,
        rows: Sequence[int],
        call: ProposalCall,
        weights: Tensor,
        trust: Tensor | None,
        elapsed: Tensor,
        held: Sequence[bool] | None,
    ) -> None:
        self._kernels, self._layers, self._prior = kernels, layers, prior
        self._bank, self._call, self._rows = bank, call, len(rows)
        trust = None if trust is None else trust.contiguous()
        weights, elapsed = weights.contiguous(), elapsed.contiguous()
        places, allowed = _places(rows), _allowed(held)
        widest = max(one.channels for one in layers)
        self._wanted = torch.empty(2, len(rows), widest, dtype=torch.float64)
        # Kept alive as long as the call that points to them.
        self._kept = weights, trust, elapsed, places, allowed
        call.weights, call.elapsed = weights.data_ptr(), elapsed.data_ptr()
        call.trust = None if trust is None else trust.data_ptr()
        call.rows = ctypes.addressof(places)
        call.allowed = None if allowed is None else ctypes.addressof(allowed)
        call.tallies = bank.tallies.data_ptr()
        call.wanted_mean, call.wanted_var = (one.data_ptr() for one in self._wanted)
        call.batch, call.row_count = weights.shape[1], len(rows)

    def moments(self, index: int, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and variance `[rows, channels]` float64 from those of a layer's frames.

        None where these do not lie as they must.
        """
        strided = mean.stride() == var.stride() and mean.stride(1) == 1
        if not (strided and mean.dtype == var.dtype == torch.float64):
            return None
        self._call.scale = None
        self._run(index, mean.data_ptr(), var.data_ptr(), mean.stride(0))
        count = self._rows * self._layers[index].channels
        wanted = self._wanted.view(2, -1)[:, :count].view(2, self._rows, -1).clone()
        return wanted[0], wanted[1]

    def table(
        self,
        index: int,
        moments: tuple[int, int, int],
        table: tuple[int, int, int],
        affine: tuple[int | None, int | None],
    ) -> None:
        """See `taps.statistics.TableWriter`."""
        call = self._call
        call.scale, call.shift, call.table_stride = table
        call.gain, call.bias = affine
        self._run(index, *moments)

    def _run(self, index: int, mean: int, var: int, stride: int) -> None:
        call, layer, bank = self._call, self._layers[index], self._bank
        start = 4 * layer.start  # bytes of fp32
        call.mean, call.var, call.stride = mean, var, stride
        call.data, call.source = bank.data.data_ptr() + start, bank.source.data_ptr() + start
        call.size, call.eps, call.prior = layer.channels, layer.eps, self._prior[index]
        self._kernels.run_proposal(call)


def _places(rows: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(rows))(*rows)


def _allowed(held: Sequence[bool] | None) -> ctypes.Array[ctypes.c_double] | None:
    """Zero for rows that are held; None: there are none."""
    if held is None:
        return None
    return (ctypes.c_double * len(held))(*(0.0 if one else 1.0 for one in held))
