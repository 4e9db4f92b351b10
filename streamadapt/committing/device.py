"""A commit as two launches on the device, or four, which a captured graph can hold.

All that may change from step to step is read from tensors: rows, weights, time, which rows are held
and the estimator's parameters. A graph that was captured with them obeys what is written there
later.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from streamadapt.bank import Rows, StatisticsBank
from streamadapt.committing.written import Written
from streamadapt.estimators import EMA, Estimator, Restarting, Welford
from streamadapt.layout import BankLayout, layers_up_to
from streamadapt.moments import Moments
from streamadapt.ops.commit import (
    MEMORY,
    MOST_FRAMES,
    RESTARTING,
    SCALARS,
    Outcome,
    Places,
    Room,
)
from streamadapt.ops.reduce import FrameMoments, shows_outliers
from streamadapt.taps.step import Settling
from streamadapt.transfer import is_capturing, upload

_MOST_KEPT = 64  # sets of rows, or sizes of steps


class DeviceCommit:
    """Reduces a step's frames, moves an estimator on, and writes the bank.

    Args:
        operators: `streamadapt.ops.commit.triton`.
        estimator: one of those there are kernels for, see `of`.
        layout: of the bank.
        bank: on a GPU, or anywhere if Triton interprets.
        on_failure: told why, once, when they cannot be had after all; from then on nothing is done.

    Attributes:
        device_type: of the bank's device.
        parameters: float64, what the estimator's arguments are read from by the kernels.
        places: where layers lie, and the seconds of memory of each.
    """

    def __init__(
        self,
        operators: ModuleType,
        estimator: Estimator,
        layout: BankLayout,
        bank: StatisticsBank,
        *,
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._operators, self._layout, self._bank = operators, layout, bank
        self._on_failure, self._failed = on_failure, False
        self.device_type = bank.device.type
        self._restarts = isinstance(estimator, Restarting)
        self._memory, self._unbiased = _baked(estimator)
        parameters, memory = self._settings(estimator)
        with torch.inference_mode(False):
            self.parameters = parameters.to(bank.device)
        self.places = Places.of(layout, memory, device=bank.device)
        self._rooms: dict[tuple[int, int], Room] = {}
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._free: dict[tuple[bool, ...], Tensor] = {}

    @classmethod
    def of(
        cls,
        operators: ModuleType | None,
        estimator: Estimator,
        layout: BankLayout,
        bank: StatisticsBank,
        *,
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> DeviceCommit | None:
        """For this estimator, if there are kernels for it."""
        if operators is None or type(estimator) not in (Restarting, EMA, Welford):
            return None
        if bank.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return None
        if isinstance(estimator, Restarting) and bank.scalar_names != SCALARS:
            return None
        return cls(operators, estimator, layout, bank, on_failure=on_failure)

    def _settings(self, estimator: Estimator) -> tuple[Tensor, Tensor]:
        """Parameters, and seconds of memory by layer."""
        layers = len(self._layout.layers)
        memory = torch.zeros(layers, dtype=torch.float64)
        if isinstance(estimator, Restarting):
            given = {
                **{name: getattr(estimator, name) for name in RESTARTING if name != "watched"},
                "watched": layers_up_to(estimator.watch_depth, layers),
            }
            values = [float(given[name]) for name in RESTARTING]
            memory = estimator.memory_seconds(self._layout.per_layer(self._layout.depth)[0].cpu())
        elif isinstance(estimator, EMA):
            values = [estimator.memory.value, 0.0, 0.0]
        else:
            assert isinstance(estimator, Welford)
            most = estimator.max_frames
            values = [0.0, estimator.prior_frames, math.inf if most is None else most]
        return torch.tensor(values, dtype=torch.float64), memory

    def adopt(self, estimator: Estimator) -> bool:
        """Follow other settings of the same estimator; a captured graph follows as well.

        Returns:
            Whether it does: not where the unit of memory is another, or the rule.
        """
        if (self._memory, self._unbiased) != _baked(estimator):
            return False
        parameters, memory = self._settings(estimator)
        with torch.inference_mode(False), torch.no_grad():
            self.parameters.copy_(upload(parameters, self.parameters.device))
            self.places.layers[2].copy_(upload(memory, self.parameters.device))
        return True

    def room(self, *, rows: int, frames: int) -> Room:
        """Room for a step of so many rows and frames; the same one every time.

        What is captured gets one of its own, which lives as long as the graph.
        """
        if is_capturing():
            channels = self._layout.padded_channels
            return Room.of(self.places, rows=rows, frames=frames, channels=channels)
        if (rows, frames) not in self._rooms:
            if len(self._rooms) >= _MOST_KEPT:
                self._rooms.clear()
            self._rooms[rows, frames] = Room.of(
                self.places, rows=rows, frames=frames, channels=self._layout.padded_channels
            )
        return self._rooms[rows, frames]

    def outcome(self, *, rows: int, frames: int) -> Outcome:
        """Tensors for what a step of so many rows and frames tells; new ones."""
        return Outcome.of(
            self.places, rows=rows, frames=frames, channels=self._layout.padded_channels
        )

    def launch(
        self,
        mean: Tensor,
        var: Tensor,
        *,
        weights: Tensor,
        elapsed: Tensor,
        allowed: Tensor,
        rows: Tensor,
        positions: Tensor,
        outcome: Outcome,
        room: Room,
    ) -> None:
        """The launches alone, to be captured: no other work on the device, nothing allocated.

        Args:
            mean: `[frames, padded channels]` float64, of each frame; channels side by side.
            var: likewise.
            weights: `[rows, frames]` float64; a frame has weight in one row at most, and one that
                is no frame in none. A row without weights is left as it is.
            elapsed: `[rows]` or `[rows, 1]` float64, camera time since each row's previous frames.
            allowed: `[rows]` float64, zero where a row is not to be changed, else one.
            rows: `[rows]` int64, of the bank, each once.
            positions: `[layers]` float64, of one frame.
            outcome: written.
            room: to work in.
        """
        bank = self._bank
        before = (mean, var, weights, elapsed, allowed, rows, positions, self.parameters)
        places = (self.places.chunks, self.places.layers)
        after = (
            bank.data,
            bank.tallies,
            outcome.pooled,
            outcome.results,
            outcome.trust,
            room.parts,
            room.order,
            room.shares,
            room.row_parts,
            room.before,
            room.candidate,
        )
        if self._restarts:
            self._operators.commit_restarting(*before, bank.source, *places, *after)
        else:
            self._operators.commit_blended(*before, *places, *after, self._memory, self._unbiased)

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
        count, frames = weights.shape
        if self._failed or settling is not None or not 1 <= frames <= MOST_FRAMES:
            return None
        outcome = self.outcome(rows=count, frames=frames)
        mean, var = (
            one if one.stride(1) == 1 else one.contiguous() for one in (observed.mean, observed.var)
        )
        try:
            self.launch(
                mean,
                var,
                weights=weights.contiguous(),
                elapsed=elapsed,
                allowed=self._allowed(count, held),
                rows=self._index(rows),
                positions=observed.layer_positions,
                outcome=outcome,
                room=self.room(rows=count, frames=frames),
            )
        except Exception as error:  # the last launch is the one that writes: nothing was changed
            self._failed = True
            self._on_failure(f"Triton's kernels failed: {type(error).__name__}: {error}")
            return None
        accepted, verdict, phase = outcome.results
        column = accepted.unsqueeze(1)
        return Written(
            verdict,
            Moments(column, outcome.pooled[0], outcome.pooled[1]),
            column,
            outcome.trust if self._restarts and shows_outliers(frames) else None,
            phase if self._restarts else None,
        )

    def _index(self, rows: Rows) -> Tensor:
        if isinstance(rows, Tensor):
            return rows
        key = tuple(rows)
        if key not in self._indices:
            if len(self._indices) >= _MOST_KEPT:
                self._indices.clear()
            with torch.inference_mode(False):
                self._indices[key] = upload(torch.tensor(key), self._bank.device)
        return self._indices[key]

    def _allowed(self, count: int, held: Sequence[bool] | Tensor | None) -> Tensor:
        if isinstance(held, Tensor):
            return held.flatten()
        key = tuple(held) if held is not None else (False,) * count
        if key not in self._free:
            if len(self._free) >= _MOST_KEPT:
                self._free.clear()
            with torch.inference_mode(False):
                free = torch.tensor([0.0 if one else 1.0 for one in key], dtype=torch.float64)
                self._free[key] = upload(free, self._bank.device)
        return self._free[key]


def _baked(estimator: Estimator) -> tuple[int, bool]:
    """What kernels are compiled for: the unit of memory, and whether variances are unbiased."""
    if isinstance(estimator, EMA):
        return MEMORY.index(estimator.memory.unit), estimator.rule == "pytorch"
    return (MEMORY.index("counted") if isinstance(estimator, Welford) else 0), False
