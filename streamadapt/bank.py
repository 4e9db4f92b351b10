"""All BatchNorm statistics of a model, for every stream, in one flat tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from streamadapt.layout import BankLayout
from streamadapt.moments import Moments
from streamadapt.transfer import is_capturing, upload

Rows = Sequence[int] | range | Tensor
"""Of the bank, each at most once; a tensor is int64 `[rows]` and may change from step to step."""


@dataclass(frozen=True, eq=False)
class State:
    """What an estimator knows of some rows: float64, `[rows, channels]` unless said.

    Attributes:
        moments: the current estimate; `count` is the number of positions it rests on, zero for
            estimators that do not ask for it.
        source: the deployed model's statistics, `[channels]` tensors.
        frames: `[rows, 1]`, frames accepted so far.
        updates: `[rows, 1]`, commits so far.
        scalars: the estimator's own values, each `[rows, 1]`.
        aside: a second mean and variance, which no layer reads, for estimators that ask for it;
            its count is zero.
        anew: `[rows, 1]` bool, in what an estimator returns: rows that it put on another state
            altogether, so that layers which did not run follow as well; None: none.
    """

    moments: Moments
    source: Moments
    frames: Tensor
    updates: Tensor
    scalars: Mapping[str, Tensor]
    aside: Moments | None = None
    anew: Tensor | None = None

    def part(self, span: slice) -> State:
        """The same of some channels."""
        return replace(
            self,
            moments=self.moments.part(span),
            source=self.source.part(span),
            aside=None if self.aside is None else self.aside.part(span),
        )

    def advance(
        self, moments: Moments, *, aside: Moments | None = None, **scalars: Tensor
    ) -> State:
        """The state after a step: new moments, and new values of the named scalars."""
        return replace(
            self,
            moments=moments,
            aside=self.aside if aside is None else aside,
            scalars={**self.scalars, **scalars},
        )


class RowCompanion(Protocol):
    """Further state with one row a stream, which is reset, copied and moved with the bank's."""

    @property
    def bytes_per_row(self) -> int:
        """Bytes of it that one stream costs."""

    def reset(self, rows: Sequence[int] | range) -> None:
        """Put rows back on the source."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays that one stream's state can be written down as, by name."""

    def capture(self, rows: Sequence[int]) -> Any:
        """A copy of rows, with a `take(rows)` like `RowState`'s.

        With one row, its `arrays()` are those of `shapes`.
        """

    def of_arrays(self, arrays: Mapping[str, Tensor]) -> Any:
        """What `capture` of one row gave, from its arrays."""

    def restore(self, rows: Sequence[int], saved: Any) -> None:
        """Put a copy back."""

    def to(self, device: torch.device) -> None:
        """Move to another device."""


class Tallies:
    """Which column of the 64-bit values beside the bank is what.

    Args:
        layers: number of layers, each with a count of positions.
        scalars: names of the estimator's scalars.
    """

    def __init__(self, layers: int, scalars: Sequence[str]) -> None:
        self.frames = slice(0, 1)
        self.updates = slice(1, 2)
        self.counts = slice(2, 2 + layers)
        self.scalars = slice(2 + layers, 2 + layers + len(scalars))
        self.width = 2 + layers + len(scalars)


class Tallied:
    """Names for the columns of `tallies`, `[rows, width]` float64; all of them are views."""

    tallies: Tensor
    columns: Tallies

    @property
    def counts(self) -> Tensor:
        """Positions behind each layer's estimate, `[rows, layers]`."""
        return self.tallies[:, self.columns.counts]

    @property
    def frames(self) -> Tensor:
        """Frames accepted, `[rows]`."""
        return self.tallies[:, 0]

    @property
    def updates(self) -> Tensor:
        """Commits, `[rows]`."""
        return self.tallies[:, 1]

    @property
    def scalars(self) -> Tensor:
        """The estimator's scalars, `[rows, scalars]`."""
        return self.tallies[:, self.columns.scalars]


@dataclass(frozen=True, eq=False)
class RowState(Tallied):
    """A compact, detached copy of some rows, the companion's included: what a snapshot holds."""

    data: Tensor
    tallies: Tensor
    columns: Tallies
    companion: Any = None

    def take(self, rows: Sequence[int]) -> RowState:
        """Some of its rows, in the given order."""
        index = upload(torch.tensor(list(rows), dtype=torch.long), self.data.device)
        return RowState(
            self.data.index_select(0, index),
            self.tallies.index_select(0, index),
            self.columns,
            None if self.companion is None else self.companion.take(rows),
        )

    def __repr__(self) -> str:
        rows, fields, channels = self.data.shape
        return f"RowState(rows={rows}, fields={fields}, channels={channels})"


class StatisticsBank(Tallied):
    """One row of statistics a stream, in one fp32 tensor `[rows, fields, channels]`.

    Fields are mean and variance; with `compensated` the low-order halves of both, so that a
    row holds 48 bits of mantissa and a cumulative estimate does not stall after millions of
    frames; with `aside` a second mean and variance that no layer reads. Frame and update counters,
    counts of positions and estimator scalars lie beside it in one float64 tensor (whole numbers
    are exact to 2**53) and belong to the same transaction.

    Its tensors are ordinary tensors, whatever grad or inference mode it is made or used in, and
    keep their addresses for life, except when the bank moves to another device.

    Args:
        layout: where each layer's channels lie.
        rows: how many streams it can hold.
        source: the deployed model's mean and variance, one pair a layer, any float dtype.
        device: where it lives.
        compensated: keep the low-order halves.
        counted: hand the estimator the counts of positions, and keep those it returns. Otherwise
            they are added up here, and it sees zeros: spreading them over the channels costs as
            much as the rest of a read.
        scalars: names and initial values of the estimator's scalars.
        aside: keep a second mean and variance; they start on the source.

    Attributes:
        companion: further state of the streams that shares the fate of their rows, or None.
    """

    def __init__(
        self,
        layout: BankLayout,
        *,
        rows: int,
        source: Sequence[tuple[Tensor, Tensor]],
        device: torch.device,
        compensated: bool = False,
        counted: bool = False,
        scalars: Mapping[str, float] | None = None,
        aside: bool = False,
    ) -> None:
        self.layout = layout
        self.rows = rows
        self.compensated = compensated
        self.counted = counted
        self.companion: RowCompanion | None = None
        self.scalar_names = tuple(scalars or ())
        self._initial_scalars = tuple((scalars or {}).values())
        self.columns = Tallies(len(layout.layers), self.scalar_names)
        fields = 2 + 2 * compensated + 2 * aside
        self._aside = slice(fields - 2, fields) if aside else None
        with torch.inference_mode(False), torch.no_grad():
            layout.to(device)
            shape = (rows, fields, layout.padded_channels)
            self.data = torch.zeros(shape, device=device)
            self.source = torch.zeros(2, layout.padded_channels, device=device)
            self.source[1] = 1.0
            self.tallies = torch.zeros(rows, self.columns.width, dtype=torch.float64, device=device)
            self.set_source(source)

    @property
    def has_aside(self) -> bool:
        """Whether there is a second mean and variance."""
        return self._aside is not None

    @property
    def device(self) -> torch.device:
        """Where the bank lives."""
        return self.data.device

    @property
    def bytes_per_row(self) -> int:
        """Bytes of state that one stream costs."""
        parts = (self.data, self.tallies)
        own = sum(part.element_size() * part[0].numel() for part in parts)
        return own if self.companion is None else own + self.companion.bytes_per_row

    def set_source(
        self, source: Sequence[tuple[Tensor, Tensor]], *, reset_rows: bool = True
    ) -> None:
        """Replace the source statistics, and by default put every row back on them."""
        with torch.inference_mode(False), torch.no_grad():
            for layer, (mean, var) in zip(self.layout.layers, source, strict=True):
                self.source[0, layer.span] = mean.to(self.source)
                self.source[1, layer.span] = var.to(self.source)
            self._make_constants()
            if reset_rows:
                self.reset(range(self.rows))

    def _make_constants(self) -> None:
        self._wide_source = self.source.double()
        self._no_count = torch.zeros_like(self._wide_source[0])
        self._one_update = torch.zeros_like(self.tallies[0, : self.columns.scalars.start])
        self._one_update[1] = 1.0
        self._one_frame = self._one_update[:2].flip(0)
        self._growth_of: tuple[Tensor, Tensor] | None = None

    def reset(self, rows: Sequence[int] | range) -> None:
        """Put rows back on the source, with all counters at their start."""
        with torch.inference_mode(False), torch.no_grad():
            index = self._index(rows)
            fresh = torch.zeros_like(self.data[0])
            fresh[:2] = self.source
            if self._aside is not None:
                fresh[self._aside] = self.source
            self.data[index] = fresh
            self.tallies[index] = 0.0
            for column, value in enumerate(self._initial_scalars):
                self.scalars[index, column] = value
            if self.companion is not None:
                self.companion.reset(rows)

    def start_with(self, scalars: Mapping[str, float]) -> None:
        """Rows that are reset from now on start with other values of the same scalars."""
        self._initial_scalars = tuple(scalars[name] for name in self.scalar_names)

    def views(self, row: int) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance of one row, a pair a layer, that share the bank's memory."""
        with torch.inference_mode(False), torch.no_grad():
            return [
                (self.data[row, 0, layer.span], self.data[row, 1, layer.span])
                for layer in self.layout.layers
            ]

    def read(self, rows: Rows, span: slice | None = None) -> State:
        """The state of rows, in float64; `span` restricts it to some channels.

        Shapes: `[len(rows), channels]`, with all padded channels when `span` is None.
        """
        span = slice(0, self.layout.padded_channels) if span is None else span
        index = self._index(rows)
        data = self.data[index][:, :, span].double()
        mean, var = data[:, 0], data[:, 1]
        if self.compensated:
            mean, var = mean + data[:, 2], var + data[:, 3]
        aside = None
        if self._aside is not None:
            aside = Moments(self._no_count[span], *data[:, self._aside].unbind(1))
        # A copy: a slice would follow the next commit.
        tallies, columns = self.tallies[index].clone(), self.columns
        count = self._no_count[span].expand_as(mean)
        if self.counted:
            count = self.layout.per_channel(tallies[:, columns.counts])[:, span]
        first = columns.scalars.start
        return State(
            moments=Moments(count, mean, var),
            source=self._source_of(span),
            frames=tallies[:, columns.frames],
            updates=tallies[:, columns.updates],
            scalars={
                name: tallies[:, first + column : first + column + 1]
                for column, name in enumerate(self.scalar_names)
            },
            aside=aside,
        )

    @property
    def source_moments(self) -> Moments:
        """The deployed model's statistics, `[padded channels]` float64."""
        return self._source_of(slice(None))

    def _source_of(self, span: slice) -> Moments:
        mean, var = self._wide_source[:, span]
        return Moments(self._no_count[span], mean, var)

    def commit(
        self,
        rows: Rows,
        new: State,
        *,
        frames: Tensor,
        positions: Tensor,
        unobserved: bool,
        sound: Tensor | None = None,
        again: bool = False,
    ) -> Tensor:
        """Write a step's result for rows: every layer of a row, or none of it.

        A row is left as it is when no frame of it was accepted, or when any of its new values is
        not finite (in fp32, for statistics). Decided on the device, without a branch.

        Args:
            rows: which rows, each at most once.
            new: the estimator's proposal, all padded channels.
            frames: `[rows, 1]` float64, accepted frames of each row in this step.
            positions: `[layers]` float64, of one frame; zero where a layer was not executed.
            unobserved: whether there is such a layer. It keeps its values while its row is
                committed.
            sound: `[rows]` float64, NaN where the companion refuses a row's step, else zero.
            again: the frames have been counted already.

        Returns:
            `[rows]` float64: frames that were committed; minus their number where a proposal was
            refused; zero where there was none.
        """
        index = self._index(rows)
        old, before = self.data[index], self.tallies[index]
        mean, var = new.moments.mean, new.moments.var.clamp(min=0.0)
        proposal = torch.empty_like(old)
        proposal[:, 0].copy_(mean)
        proposal[:, 1].copy_(var)
        if self.compensated:
            proposal[:, 2].copy_(mean - proposal[:, 0])
            proposal[:, 3].copy_(var - proposal[:, 1])
        if self._aside is not None:
            assert new.aside is not None
            first = self._aside.start
            proposal[:, first].copy_(new.aside.mean)
            proposal[:, first + 1].copy_(new.aside.var.clamp(min=0.0))
        columns = self.columns
        tallies = before[:, : columns.scalars.start].clone()
        if not again:
            tallies = (tallies + self._one_update).addcmul_(frames, self._growth(positions))
        if self.counted:
            tallies[:, columns.counts] = self.layout.per_layer(new.moments.count)
        if unobserved:
            seen = positions > 0
            moves = self.layout.per_channel(seen).expand(len(old), 1, -1)
            if new.anew is not None:
                moves = moves | new.anew.unsqueeze(2)
            proposal = torch.where(moves, proposal, old)
            kept = before[:, columns.counts]
            tallies[:, columns.counts] = torch.where(seen, tallies[:, columns.counts], kept)
        if self.scalar_names:
            scalars = [new.scalars[name] for name in self.scalar_names]
            tallies = torch.cat([tallies, *scalars], dim=1)
        # One value that is not finite makes the sum so; a float64 sum of fp32 values never is.
        # Zero times what is not finite is not zero.
        total = proposal.sum(dim=(1, 2), dtype=torch.float64) + tallies.sum(dim=1)
        if sound is not None:
            total = total + sound
        present = frames[:, 0]
        finite = total * 0.0 == 0.0
        accepted = (finite & (present > 0)).unsqueeze(1)
        self.tallies[index] = torch.where(accepted, tallies, before)
        if isinstance(index, slice):
            torch.where(accepted.unsqueeze(2), proposal, old, out=old)
        else:
            self.data[index] = torch.where(accepted.unsqueeze(2), proposal, old)
        return torch.where(finite, present, -present)

    def scalars_of(self, rows: Rows) -> dict[str, Tensor]:
        """The estimator's scalars of rows, each `[rows, 1]`; may share the bank's memory."""
        scalars = self.scalars[self._index(rows)]
        return {name: scalars[:, k : k + 1] for k, name in enumerate(self.scalar_names)}

    def _growth(self, positions: Tensor) -> Tensor:
        """What one frame adds to the tallies: a frame, no update, and each layer's positions."""
        if is_capturing():  # what is kept here is thrown away when another shape comes
            return torch.cat([self._one_frame, positions])
        if self._growth_of is None or self._growth_of[0] is not positions:
            self._growth_of = (positions, torch.cat([self._one_frame, positions]))
        return self._growth_of[1]

    def select(self, rows: Sequence[int]) -> RowState:
        """Rows as they are, without the companion's; they may share the bank's memory."""
        index = self._index(rows)
        return RowState(self.data[index], self.tallies[index], self.columns)

    def capture(self, rows: Sequence[int]) -> RowState:
        """A compact copy of rows; never a view of the bank."""
        index = upload(torch.tensor(list(rows), dtype=torch.long), self.device)
        with torch.inference_mode(False), torch.no_grad():
            companion = None if self.companion is None else self.companion.capture(rows)
            return RowState(self.data[index], self.tallies[index], self.columns, companion)

    def restore(self, rows: Sequence[int], saved: RowState) -> None:
        """Put a copy made by `capture` back, in place."""
        index = upload(torch.tensor(list(rows), dtype=torch.long), self.device)
        with torch.inference_mode(False), torch.no_grad():
            self.data[index] = saved.data.to(self.device)
            self.tallies[index] = saved.tallies.to(self.device)
            if self.companion is not None:
                self.companion.restore(rows, saved.companion)

    def to(self, device: torch.device) -> None:
        """Move everything to another device; all views made before are stale afterwards."""
        with torch.inference_mode(False), torch.no_grad():
            self.layout.to(device)
            for name in ("data", "source", "tallies"):
                setattr(self, name, getattr(self, name).to(device))
            if self.companion is not None:
                self.companion.to(device)
            self._make_constants()

    def _index(self, rows: Rows) -> slice | Tensor:
        """Consecutive rows as a slice (no gather, no host-to-device copy), others as a tensor."""
        if isinstance(rows, Tensor):
            return rows
        first, last = rows[0], rows[-1]
        if len(rows) == 1 or list(rows) == list(range(first, last + 1)):
            return slice(first, last + 1)
        return upload(torch.tensor(rows, dtype=torch.long), self.device)

    def __repr__(self) -> str:
        return (
            f"StatisticsBank(rows={self.rows}, layers={len(self.layout.layers)}, "
            f"channels={self.layout.channels}, bytes_per_row={self.bytes_per_row}, "
            f"device={self.device})"
        )
