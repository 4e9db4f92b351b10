"""CORAL's state, one row a stream: target moments and the map made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamadapt.alignment.groups import FrameGroups
from streamadapt.alignment.roots import inverse_root, matrix_power, steps_for
from streamadapt.alignment.source import Coral
from streamadapt.transfer import upload

_LARGEST = 1e37  # variances up to it leave every covariance finite in fp32 (Cauchy-Schwarz)
_NAMES = ("alignment mean", "alignment covariance", "alignment map", "alignment waiting")
_GROWTH = 1e4  # the target's covariance may be so many times the source's in norm


@dataclass(frozen=True, eq=False)
class AlignmentState:
    """A copy of some rows: what a snapshot holds of the alignment."""

    mean: Tensor
    covariance: Tensor
    excess: Tensor
    waiting: tuple[int, ...]

    def take(self, rows: Sequence[int]) -> AlignmentState:
        """Some of its rows, in the given order."""
        index = upload(torch.tensor(list(rows), dtype=torch.long), self.mean.device)
        return AlignmentState(
            self.mean[index],
            self.covariance[index],
            self.excess[index],
            tuple(self.waiting[row] for row in rows),
        )

    def arrays(self) -> dict[str, Tensor]:
        """Its first row, as tensors to be written down."""
        waiting = torch.tensor(self.waiting[:1], dtype=torch.float64)
        tensors = (self.mean[0], self.covariance[0], self.excess[0], waiting)
        return dict(zip(_NAMES, tensors, strict=True))


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a step would write: see `AlignmentRows.propose`.

    Attributes:
        sound: `[rows]` float64, zero where all of a row's values are finite, NaN elsewhere.
    """

    state: AlignmentRows
    rows: Sequence[int]
    frames: Sequence[int]
    keep: Tensor
    mean: Tensor
    factor: Tensor
    maps: dict[int, Tensor]
    sound: Tensor

    def write(self, verdict: Tensor) -> None:
        """Write the rows whose `verdict` is above zero."""
        self.state.apply(self, verdict)


class AlignmentRows:
    """Target mean, covariance and map of every stream.

    The map is kept as `A - I`: at the start it is zero, so that features pass to the bit, and
    near the start nothing cancels. Means are float64, `[rows, D]`; covariances and maps fp32,
    `[rows, D, D]`. All of it is allocated once: 8 MB a stream at D = 1024.

    Args:
        source: the source side.
        rows: how many streams it can hold.
        device: where it lives.
    """

    def __init__(self, source: Coral, *, rows: int, device: torch.device) -> None:
        self.source = source
        size = source.features
        largest = float(torch.linalg.matrix_norm(source.covariance)) / source.regularisation
        self._steps = steps_for(1.0 + _GROWTH * (1.0 + largest))
        with torch.inference_mode(False), torch.no_grad():
            self.mean = torch.zeros(rows, size, dtype=torch.float64, device=device)
            self.covariance = torch.zeros(rows, size, size, device=device)
            self.excess = torch.zeros(rows, size, size, device=device)
        self._waiting = [0] * rows
        self._make_constants(device)
        self.reset(range(rows))

    @property
    def bytes_per_row(self) -> int:
        """Bytes of state that one stream costs."""
        parts = (self.mean, self.covariance, self.excess)
        return sum(part.element_size() * part[0].numel() for part in parts)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `RowCompanion`."""
        parts = (self.mean, self.covariance, self.excess)
        return dict(zip(_NAMES, [*(tuple(one.shape[1:]) for one in parts), (1,)], strict=True))

    def of_arrays(self, arrays: Mapping[str, Tensor]) -> AlignmentState:
        """See `RowCompanion`."""
        mean, covariance, excess, waiting = (arrays[name] for name in _NAMES)
        return AlignmentState(mean[None], covariance[None], excess[None], (int(waiting[0]),))

    # Reading -----------------------------------------------------------------------------------

    def maps(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """`mu_t` and the shift of it, `[rows, D]`, and `A - I`, `[rows, D, D]`, fp32.

        With grad enabled, a copy: a graph may keep it while the state moves on.
        """
        with torch.inference_mode(False), torch.no_grad():
            index = self._index(rows)
            mean, excess = self.mean[index], self.excess[index]
            wanted = self._mean if self.source.align_mean else mean
            shift = (wanted - mean).float()
            return mean.float(), shift, excess

    # Writing -----------------------------------------------------------------------------------

    def propose(
        self,
        rows: Sequence[int],
        features: Tensor,
        usable: Tensor,
        groups: FrameGroups,
        *,
        accepted: Tensor,
        offered: Sequence[int],
    ) -> Proposal:
        """Work out a step's update; changes nothing.

        With `a = 1 - 2^(-n / half-life)`, `d = m_b - mu` and batch moments `m_b`, `C_b` over the
        usable features of a row::

            mu <- mu + a d      C <- (1-a) C + a C_b + a (1-a) d d^T

        which is the exact covariance of the mixture. It is kept in factors: `a C_b` plus the last
        term is `F^T F` with as many rows in `F` as there are features, and one.

        Args:
            rows: which rows, each once.
            features: `[items, D]` float64.
            usable: `[items]` bool, which of them count.
            groups: which item belongs to which row.
            accepted: `[rows, 1]` float64, accepted frames: `n`.
            offered: frames of each row in this step, usable or not.
        """
        index = self._index(rows)
        features = torch.where(usable.unsqueeze(1), features, 0.0)
        x, present = groups.gather(features), groups.gather(usable.double().unsqueeze(1))
        present = present * groups.present
        count = present.sum(dim=1)
        x = x * present
        batch = x.sum(dim=1) / count.clamp(min=1.0)
        # Rounded to fp32 first: the covariance is multiplied by exactly this.
        keep = torch.exp2(accepted / -self.source.half_life_frames).float().double()
        keep = torch.where((count > 0) & (accepted > 0), keep, 1.0)
        weight = 1.0 - keep
        old = self.mean[index]
        step = batch - old
        root = (weight / count.clamp(min=1.0)).sqrt().unsqueeze(2)
        between = (weight * keep).sqrt() * step
        spread = (x - batch.unsqueeze(1)) * present * root
        factor = torch.cat([spread, between.unsqueeze(1)], dim=1).float()
        mean = old + weight * step
        variances = self.covariance[index].diagonal(dim1=1, dim2=2) * keep
        variances = variances + factor.double().square().sum(dim=1)
        finite = (variances < _LARGEST).all(dim=1) & torch.isfinite(mean).all(dim=1)
        factor = torch.where(finite.view(-1, 1, 1), factor, 0.0)
        maps = {}
        for place, (row, frames) in enumerate(zip(rows, offered, strict=True)):
            if self._waiting[row] + frames >= self.source.refresh_frames:
                # A row of its own at a time, so that no stream's rounding depends on another's.
                maps[place] = self._map(row, keep[place], factor[place])
                finite[place] &= torch.isfinite(maps[place]).all()
        sound = torch.where(finite, 0.0, torch.nan).double()
        return Proposal(self, rows, offered, keep, mean, factor, maps, sound)

    def apply(self, proposal: Proposal, verdict: Tensor) -> None:
        """Write a proposal into the rows whose `verdict` is above zero, and leave the others."""
        index = self._index(proposal.rows)
        accepted = (verdict > 0).unsqueeze(1)
        self.mean[index] = torch.where(accepted, proposal.mean, self.mean[index])
        keep = torch.where(accepted, proposal.keep, 1.0).unsqueeze(2).float()
        factor = torch.where(accepted.unsqueeze(2), proposal.factor, 0.0)
        covariance = self.covariance[index]
        covariance.mul_(keep).baddbmm_(factor.mT, factor)
        if not isinstance(index, slice):
            self.covariance[index] = covariance
        for place, excess in proposal.maps.items():
            row = proposal.rows[place]
            self.excess[row] = torch.where(accepted[place], excess, self.excess[row])
        for place, (row, frames) in enumerate(zip(proposal.rows, proposal.frames, strict=True)):
            self._waiting[row] = 0 if place in proposal.maps else self._waiting[row] + frames

    def _map(self, row: int, keep: Tensor, factor: Tensor) -> Tensor:
        """`A - I` of a row once `factor` is in its covariance, fp32."""
        covariance = torch.addmm(self.covariance[row] * keep.float(), factor.T, factor).double()
        whiten = inverse_root(covariance, ridge=self.source.regularisation, steps=self._steps)
        excess = whiten @ self._colour
        excess.diagonal().sub_(1.0)
        return excess.float()

    # Life --------------------------------------------------------------------------------------

    def reset(self, rows: Sequence[int] | range) -> None:
        """Put rows back on the source: the map is the identity."""
        with torch.inference_mode(False), torch.no_grad():
            for row in rows:
                self.mean[row] = self._mean
                self.covariance[row] = self._covariance
                self.excess[row] = 0.0
                self._waiting[row] = 0

    def capture(self, rows: Sequence[int]) -> AlignmentState:
        """A copy of rows."""
        index = upload(torch.tensor(list(rows), dtype=torch.long), self.mean.device)
        with torch.inference_mode(False), torch.no_grad():
            return AlignmentState(
                self.mean[index],
                self.covariance[index],
                self.excess[index],
                tuple(self._waiting[row] for row in rows),
            )

    def restore(self, rows: Sequence[int], saved: AlignmentState) -> None:
        """Put a copy made by `capture` back."""
        index = upload(torch.tensor(list(rows), dtype=torch.long), self.mean.device)
        with torch.inference_mode(False), torch.no_grad():
            self.mean[index] = saved.mean.to(self.mean.device)
            self.covariance[index] = saved.covariance.to(self.mean.device)
            self.excess[index] = saved.excess.to(self.mean.device)
            for row, waiting in zip(rows, saved.waiting, strict=True):
                self._waiting[row] = waiting

    def to(self, device: torch.device) -> None:
        """Move everything to another device."""
        with torch.inference_mode(False), torch.no_grad():
            for name in ("mean", "covariance", "excess"):
                setattr(self, name, getattr(self, name).to(device))
            self._make_constants(device)

    def _make_constants(self, device: torch.device) -> None:
        with torch.inference_mode(False), torch.no_grad():
            colour = matrix_power(self.source.covariance, 0.5, ridge=self.source.regularisation)
            self._colour = colour.to(device)
            self._mean = self.source.mean.to(device)
            self._covariance = self.source.covariance.float().to(device)

    def _index(self, rows: Sequence[int]) -> slice | Tensor:
        """Consecutive rows as a slice, so that nothing is gathered; others as a tensor."""
        if list(rows) == list(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[0] + len(rows))
        return upload(torch.tensor(rows, dtype=torch.long), self.mean.device)
