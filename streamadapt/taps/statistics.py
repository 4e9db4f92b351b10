"""What the layers of a step are normalised with: their rows' statistics, and single frames' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from streamadapt.bank import State
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments
from streamadapt.ops.collect import StagedMoments
from streamadapt.ops.correct import frame_distance, frame_share, lean
from streamadapt.ops.remap import remap_coefficients
from streamadapt.transfer import host_sees

_LEAST_POSITIONS = 64  # of a frame whose own statistics say something


class RowStatistics(Protocol):
    """Of the rows of one step.

    Attributes:
        known: all layers' are known from the start.
    """

    known: bool

    def coefficients(self, index: int) -> tuple[Tensor, Tensor]:
        """`scale` and `shift` that move a layer's inputs onto them, `[rows, channels]` fp32."""

    def wanted(self, index: int, span: slice) -> Moments:
        """What a layer's inputs are to be normalised with, `[rows, channels]`."""

    def held(self, span: slice) -> Moments:
        """What the layers hold themselves."""

    def source(self, span: slice) -> Moments:
        """The deployed model's."""


class CommittedStatistics:
    """The rows' committed ones, or the source's.

    Args:
        read: the state of the rows, all channels; called when it is needed, if it is.
        layout: the bank's.
        bound: the layers hold the (one) row's statistics, not the source's.
        source: normalise with the source's.
        held: what the layers hold where that is neither, `[2, channels]` float64.
    """

    known = True

    def __init__(
        self,
        read: Callable[[], State],
        layout: BankLayout,
        *,
        bound: bool,
        source: bool = False,
        held: Tensor | None = None,
    ) -> None:
        self._read, self._layout, self._bound, self._as_source = read, layout, bound, source
        self._own = held
        self._all: tuple[Tensor, Tensor] | None = None

    @cached_property
    def _state(self) -> State:
        with torch.inference_mode(False), torch.no_grad():
            return self._read()

    @cached_property
    def _wanted(self) -> Moments:
        rows, own = self._state.moments, self._state.source
        if not self._as_source:
            return rows
        mean, var = own.mean.expand_as(rows.mean), own.var.expand_as(rows.var)
        return Moments(rows.count, mean, var)

    @property
    def _held(self) -> Moments:
        if self._own is not None:
            return Moments(self._state.source.count, *self._own)
        return self._state.moments if self._bound else self._state.source

    def coefficients(self, index: int) -> tuple[Tensor, Tensor]:
        """See `RowStatistics`."""
        if self._all is None:
            with torch.inference_mode(False), torch.no_grad():
                self._all = remap_coefficients(self._wanted, self._held, self._layout.eps)
        span = self._layout.layers[index].span
        return self._all[0][:, span], self._all[1][:, span]

    def wanted(self, index: int, span: slice) -> Moments:
        """See `RowStatistics`; any span of channels will do."""
        return self._wanted.part(span)

    def held(self, span: slice) -> Moments:
        """See `RowStatistics`."""
        return self._held.part(span)

    def source(self, span: slice) -> Moments:
        """See `RowStatistics`."""
        return self._state.source.part(span)


class TableWriter(Protocol):
    """Writes what layers are normalised with where kernels read it."""

    def table(
        self,
        index: int,
        moments: tuple[int, int, int],
        table: tuple[int, int, int],
        affine: tuple[int | None, int | None],
    ) -> None:
        """Scale and shift of a layer's input, `[rows, channels]` fp32.

        Args:
            index: of the layer.
            moments: addresses of the frames' means and variances, and the stride of frames.
            table: addresses of scale and shift, and the stride of rows.
            affine: addresses of the layer's own weight and bias, if it has them.
        """


class Proposer(Protocol):
    """Says what layers are to be normalised with, from what their frames showed."""

    def __call__(self, index: int, state: State) -> Moments:
        """Wanted moments of a layer, `[rows, channels]`; `state`: its rows' there."""

    def writer(self, frames: int) -> TableWriter | None:
        """Writes the same for kernels, in a step of so many frames; None: nothing does."""


class ProposedStatistics:
    """What the estimator makes of the rows' at a layer when it has seen this batch there.

    Args:
        read: the committed state of the rows, all channels; called when it is needed, if it is.
        propose: the estimator's proposals.
        layout: the bank's.
        bound: as for `CommittedStatistics`.
        held: likewise.
    """

    known = False

    def __init__(
        self,
        read: Callable[[], State],
        propose: Proposer,
        layout: BankLayout,
        *,
        bound: bool,
        held: Tensor | None = None,
    ) -> None:
        self._read, self._propose, self._layout, self._bound = read, propose, layout, bound
        self._own = held
        self.writer = propose.writer
        self._states: dict[int, State] = {}  # by where a layer starts

    def coefficients(self, index: int) -> tuple[Tensor, Tensor]:
        """See `RowStatistics`."""
        span = self._layout.layers[index].span
        with torch.inference_mode(False), torch.no_grad():
            return remap_coefficients(
                self.wanted(index, span), self.held(span), self._layout.eps[span]
            )

    def wanted(self, index: int, span: slice) -> Moments:
        """See `RowStatistics`; `span` is the layer's."""
        return self._propose(index, self._state(span))

    def held(self, span: slice) -> Moments:
        """See `RowStatistics`."""
        state = self._state(span)
        if self._own is not None:
            return Moments(state.source.count, *self._own[:, span])
        return state.moments if self._bound else state.source

    def source(self, span: slice) -> Moments:
        """See `RowStatistics`."""
        return self._state(span).source

    @cached_property
    def _whole(self) -> State:
        with torch.inference_mode(False), torch.no_grad():
            return self._read()

    def _state(self, span: slice) -> State:
        if span.start not in self._states:
            self._states[span.start] = self._whole.part(span)
        return self._states[span.start]


class FramesOwn:
    """Correction of single frames in one step; see `estimators.FrameCorrection`.

    Args:
        rows: statistics of the step's rows.
        thresholds: of the first layers, distance up to which nothing is corrected.
        layout: the bank's.

    Attributes:
        thresholds: as given.
    """

    def __init__(
        self, rows: RowStatistics, thresholds: Sequence[float], layout: BankLayout
    ) -> None:
        self._rows, self.thresholds, self._layout = rows, thresholds, layout
        self._measures: tuple[Tensor, Tensor, Tensor] | None = None
        self._foreign: Tensor | None = None  # [frames, 1]
        self._later: tuple[Tensor, Tensor] | None = None

    def measures(self, index: int, positions: int) -> bool:
        """Whether a layer needs the moments of its frames."""
        return index < len(self.thresholds) and positions >= _LEAST_POSITIONS

    @property
    def leaning(self) -> Tensor | None:
        """How much each frame leans to the source in later layers, `[frames, 1]` float64.

        None: no frame was found to be so unlike its row.
        """
        return self._foreign

    @leaning.setter
    def leaning(self, found: Tensor) -> None:
        self._foreign, self._later = found, None

    @property
    def suspects(self) -> bool:
        """Whether some frame was unlike its row, where knowing that takes no waiting."""
        return self._foreign is not None and self._foreign.device.type == "cpu"

    def coefficients(
        self, index: int, staged: StagedMoments | None, items: int, rows: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """`scale` and `shift` of a layer's input; None: no frame of it is corrected.

        Args:
            index: of the layer.
            staged: moments of its items; None in layers that do not measure.
            items: of its leading dimension.
            rows: the row of each item; None when there is one.
        """
        if staged is None and self._foreign is None:
            return None
        with torch.inference_mode(False), torch.no_grad():
            if staged is not None:
                return self._own(index, staged, rows)
            return self._towards_source(index, items, rows)

    def _own(
        self, index: int, staged: StagedMoments, rows: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        span, usual = self._layout.layers[index].span, self.thresholds[index]
        row = self._rows.wanted(index, span)
        mean, precision, floor = self._measure(index, span, row)
        if rows is not None and len(mean) > 1:
            mean, precision = mean[rows], precision[rows]
        distance, log = frame_distance(staged, mean=mean, precision=precision, eps=floor)
        before = self._foreign if index > 0 else None
        self._foreign = before
        if host_sees(distance) and not bool((distance > usual).any()):
            return None  # on a device, asking would mean waiting for it
        weight = frame_share(distance, usual=usual)
        # `1 - (2 usual / D)^2`: the same weight for twice the distance.
        foreign = (4.0 * weight - 3.0).clamp_(min=0.0)
        if before is not None and before.shape == foreign.shape:
            foreign = torch.maximum(before, foreign)
        self._foreign = foreign
        self._later = None
        row, held = _at(row, rows), _at(self._rows.held(span), rows)
        eps = self._layout.eps[span]
        return lean(row, held, eps, mean=staged.mean, log=log, weight=weight)

    def _measure(self, index: int, span: slice, row: Moments) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, `1 / (variance + eps)` and eps of a layer's rows, fp32."""
        if not self._rows.known:
            return _scaled(row, self._layout.eps[span])
        if self._measures is None:  # all layers' at once
            leading = slice(0, self._layout.layers[len(self.thresholds) - 1].stop)
            whole = self._rows.wanted(index, leading)
            self._measures = _scaled(whole, self._layout.eps[leading])
        mean, precision, eps = self._measures
        return mean[:, span], precision[:, span], eps[span]

    def _towards_source(
        self, index: int, items: int, rows: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        weight, span = self._foreign, self._layout.layers[index].span
        if weight is None or weight.shape[0] != items:
            return None
        if host_sees(weight) and not bool(weight.any()):
            return None
        if not self._rows.known:
            return self._leant(index, span, weight, rows)
        if self._later is None:  # all layers' at once
            self._later = self._leant(index, slice(None), weight, rows)
        scale, shift = self._later
        return scale[:, span], shift[:, span]

    def _leant(
        self, index: int, span: slice, weight: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        eps = self._layout.eps[span]
        row = _at(self._rows.wanted(index, span), rows)
        held, source = _at(self._rows.held(span), rows), self._rows.source(span)
        log = ((source.var + eps) / (row.var + eps)).log()
        return lean(row, held, eps, mean=source.mean, log=log, weight=weight)


def _scaled(row: Moments, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return row.mean.float(), (row.var + eps).reciprocal_().float(), eps.float()


def _at(moments: Moments, rows: Tensor | None) -> Moments:
    """Of each item, `[items, channels]`; unchanged where one row serves all."""
    if rows is None or moments.mean.dim() == 1 or moments.mean.shape[0] == 1:
        return moments
    return Moments(moments.count, moments.mean[rows], moments.var[rows])
