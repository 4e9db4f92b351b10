"""What is known of a step's frames without asking the device: their rows, order, shape and time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from streamadapt.transfer import upload

REPEATS = 3  # of a frame, from which it counts as frozen
ENOUGH_FRAMES = 8  # good ones of a row, from which it is known
_SAMPLE_SECONDS = 10.0
_SETTLED_FRAMES, _STRANGE_FRAMES = 50, 8  # of one shape


class HostRow:
    """What the host knows of a row: its camera time, and the shape of its frames."""

    def __init__(self) -> None:
        self.samples = 0
        self._age_seconds = self._sampled_seconds = 0.0
        self._shape: tuple[int, ...] = ()
        self._settled: tuple[int, ...] | None = None
        self._length = self._strangers = 0

    def due(self, elapsed_seconds: float) -> float | None:
        """Seconds since the last sample where another is due: at first often, then every ten."""
        if self.samples and 0.0 < elapsed_seconds < math.inf:  # nothing was before the first
            self._age_seconds += elapsed_seconds
        passed = self._age_seconds - self._sampled_seconds
        if passed < min(_SAMPLE_SECONDS, self._age_seconds / ENOUGH_FRAMES):
            return None
        self._sampled_seconds = self._age_seconds
        self.samples += 1
        return passed

    def strange(self, shape: tuple[int, ...], frames: int) -> int:
        """How many of a step's frames, the first ones, have a shape that is not the usual yet."""
        if shape != self._shape:
            self._shape, self._length = shape, 0
        self._length += frames
        strange = 0
        if self._settled is not None and shape != self._settled:
            strange = min(frames, _STRANGE_FRAMES - self._strangers)
            self._strangers += strange
            if self._strangers == _STRANGE_FRAMES:
                self._settled = None
        if self._length >= _SETTLED_FRAMES:
            self._settled, self._strangers = shape, 0
        return strange


class Places:
    """Which frame of a step belongs to which of its rows, as indices on the device.

    Args:
        rows: bank rows.
        entries: index into `rows` of each frame.
        device: where the indices live.
        hosts: of the rows.
    """

    def __init__(
        self,
        rows: tuple[int, ...],
        entries: tuple[int, ...],
        device: torch.device,
        hosts: Sequence[HostRow] = (),
    ) -> None:
        self.key = rows, entries
        self.hosts = hosts
        self.frames = [0] * len(rows)
        newest, before = list(range(len(rows))), []  # in what rows held, followed by the frames
        for frame, place in enumerate(entries):
            before.append(newest[place])
            newest[place] = len(rows) + frame
            self.frames[place] += 1
        self.longest = min(max(self.frames), REPEATS)
        self._aligned = entries == tuple(range(len(rows)))
        table = upload(torch.tensor([*rows, *entries, *before, *newest]), device)
        parts = [len(rows), len(entries), len(entries), len(rows)]
        self.index, self.entries, self._before, self._newest = table.split(parts)

    def of_frames(self, per_row: Tensor) -> Tensor:
        """Each frame's row, `[frames, ...]`; `[1, ...]` where there is one row."""
        if self._aligned or len(per_row) == 1:
            return per_row
        return per_row.index_select(0, self.entries)

    def per_row(self, per_frame: Tensor) -> Tensor:
        """Sums over the frames of each row, `[rows, ...]`."""
        if self._aligned:
            return per_frame
        out = per_frame.new_zeros(len(self.frames), *per_frame.shape[1:])
        return out.index_add_(0, self.entries, per_frame)

    def before(self, held: Tensor, per_frame: Tensor) -> Tensor:
        """What each frame's predecessor in its row had, `[frames, ...]`, given what rows held."""
        if self._aligned:
            return held
        return torch.cat([held, per_frame]).index_select(0, self._before)

    def last(self, held: Tensor, per_frame: Tensor) -> Tensor:
        """What each row's newest frame has, `[rows, ...]`."""
        if self._aligned:
            return per_frame
        return torch.cat([held, per_frame]).index_select(0, self._newest)

    def first(self, counts: Sequence[int]) -> list[bool]:
        """Which frames are among the first so many of their rows."""
        left, out = list(counts), []
        for place in self.key[1]:
            out.append(left[place] > 0)
            left[place] -= 1
        return out
