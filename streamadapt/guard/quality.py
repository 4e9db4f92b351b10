"""Frames that are no picture, found on the device before anything learns from them.

A frame is reduced to the means of at most 16 x 16 cells a channel, every pixel in one of them. Its
contrast is the standard deviation across a channel's cells (root mean square over channels), its
level the mean. What is usual is the median of 32 samples of the row's good frames, ten seconds
apart once there are many. All limits are relative to that: `a x + b`, `a > 0`, changes no verdict.

===========  ====================================================================================
verdict      when
===========  ====================================================================================
nonfinite    a pixel is
shape        C, H or W differ from what the row had for 50 frames on end; eight such frames, then
             not until another 50
black        contrast below 5 % of the usual, at any level but a bright one: loss of signal, a cap
saturated    the same above the usual level by the usual contrast; or 60 % of the cells at their
             channel's maximum, to 2 % of the contrast, in a row where less than 30 % usually are
frozen       equal to the row's frame before in contrast, level and a weighted sum of all cells of
             four channels, to the bit, for the third time in a row: a repeated frame or two is
             what conversion of frame rates makes
===========  ====================================================================================

The first that applies is the verdict. Before a row has had eight good frames only `nonfinite` and
`shape` apply. Night takes four fifths of the contrast, fog two thirds: neither comes near a limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamadapt.guard.cells import EDGE, cells_of, measures
from streamadapt.guard.places import ENOUGH_FRAMES, REPEATS, HostRow, Places
from streamadapt.transfer import upload

QUALITY = ("good", "nonfinite", "black", "saturated", "frozen", "shape")

_PATIENCE_SECONDS = 600.0  # of nothing but black and saturated frames; then that is the world
_SAMPLES = 32
_LOST_CONTRAST = 0.05  # of the usual
_CLIPPED, _USUALLY_CLIPPED = 0.5999, 0.3  # of the cells; the former less rounding
_HASHED = 4 * EDGE * EDGE  # cells of the first channels

# Columns of the state: limits on a frame's values, see `measures`, and on its repeats; seconds of
# loss and good frames as of the last sample; the newest frame's values and repeats.
_LIMITS, _LOST, _GOOD, _NEWEST, _RUN = slice(0, 6), 6, 7, slice(8, 13), 13
_FRESH = (-1.0, -1.0, *[math.inf] * 4, -math.inf, 0.0, *[math.nan] * 5, 0.0)


@dataclass(frozen=True, eq=False)
class Judged:
    """Verdicts on the frames of a step.

    Attributes:
        weights: `[entries]` float64, 1 for good frames and padding, 0 for the others.
        codes: `[entries]` int64, index into `QUALITY`; behind its end for those that have no
            verdict.
        counts: `[rows of the step, 6]` int64, frames of each verdict.
    """

    weights: Tensor
    codes: Tensor
    counts: Tensor


class FrameGate:
    """Judges the frames of `rows` streams, each by what its own camera showed before the step.

    The host never waits for the device. Frames that are not good change nothing of what is usual.
    A world that has lost its contrast for good is let in in the end: after 600 s of camera time of
    nothing but `black` and `saturated` (noticed at the next sample) what is usual is learned anew
    from whatever comes, frozen frames excepted.

    Frames are compared after reduction, and reductions may round otherwise in a batch of another
    size or memory format: three repeats of a frozen picture pass again there.

    Args:
        rows: how many streams there can be.
        device: where the state lives, half a kilobyte a row.
    """

    def __init__(self, *, rows: int, device: torch.device) -> None:
        self._hosts: dict[int, HostRow] = {}
        self._places: Places | None = None
        with torch.inference_mode(False), torch.no_grad():
            self._fresh = torch.tensor(_FRESH, dtype=torch.float32)
            self._state = self._fresh.repeat(rows, 1)
            self._since = torch.zeros(rows, len(QUALITY), dtype=torch.long)  # the last sample
            self._samples = torch.full((rows, _SAMPLES, 3), math.nan, dtype=torch.float32)
            self._slots = torch.arange(_SAMPLES)
            self._bits = torch.tensor([1.0, 2.0, 4.0, 8.0, 0.0, 16.0], dtype=torch.float32)
            self._codes = torch.tensor([_code(bits) for bits in range(64)])
            self._one_hot = torch.eye(len(QUALITY) + 1, len(QUALITY), dtype=torch.long)
            golden = torch.arange(1, _HASHED + 1, dtype=torch.float64) * (math.sqrt(5.0) - 1) / 2
            self._hash = (golden.frac() + 0.5).float()
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Move to another device."""
        self._places = None
        with torch.inference_mode(False), torch.no_grad():
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))

    def forget(self, rows: Iterable[int]) -> None:
        """Rows have new owners: all that is known of them goes."""
        rows = list(rows)
        for row in rows:
            self._hosts.pop(row, None)
        self._places = None
        with torch.inference_mode(False), torch.no_grad():
            index = upload(torch.tensor(rows, dtype=torch.long), self._state.device)
            self._state[index] = self._fresh
            self._since.index_fill_(0, index, 0)
            self._samples.index_fill_(0, index, math.nan)

    def judge(
        self,
        frames: object,
        rows: Sequence[int],
        entries: Sequence[int] | None,
        elapsed_seconds: Sequence[float],
        *,
        valid: int | None = None,
        usable: Tensor | None = None,
    ) -> Judged | None:
        """Judge the frames of a step and take them in.

        Args:
            frames: `[B, C, H, W]`, floating or uint8, in any normalisation, layout and device.
            rows: bank rows of the step, each once.
            entries: `[B]`, index into `rows` of each frame; None: there is one row.
            elapsed_seconds: camera time since each row's previous frames.
            valid: the first so many are frames, the rest is padding; None: all are.
            usable: `[B]` float64, 0 for frames that are kept out whatever is in them: they have no
                verdict, and say nothing of what is usual. None: there are none.

        Returns:
            None where `frames` is something else: nothing is gated then.
        """
        if not isinstance(frames, Tensor) or frames.dim() != 4 or frames.layout != torch.strided:
            return None
        if not (frames.is_floating_point() or frames.dtype == torch.uint8) or not frames.numel():
            return None
        count = len(frames) if valid is None else valid
        padding = len(frames) - count
        with torch.inference_mode(False), torch.no_grad():
            if not count:
                codes = self._since.new_zeros(padding)
                return Judged(codes.double() + 1, codes, codes.new_zeros(len(rows), len(QUALITY)))
            places = self._place(rows, entries, count)
            frames = frames[:count] if padding else frames
            codes, counts = self._judge(frames, places, elapsed_seconds, usable)
            if padding:
                codes = torch.cat([codes, codes.new_zeros(padding)])
            return Judged((codes == 0).double(), codes, counts)

    def _place(self, rows: Sequence[int], entries: Sequence[int] | None, count: int) -> Places:
        key = tuple(rows), (0,) * count if entries is None else tuple(entries[:count])
        if self._places is None or self._places.key != key:  # as a rule it is the last step's
            hosts = [self._hosts.setdefault(row, HostRow()) for row in rows]
            self._places = Places(*key, self._state.device, hosts)
        return self._places

    def _judge(
        self,
        frames: Tensor,
        places: Places,
        elapsed_seconds: Sequence[float],
        usable: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        cells = cells_of(frames)
        device = self._state.device
        if cells.device != device:
            cells = upload(cells, device) if cells.device.type == "cpu" else cells.to(device)
        values = measures(cells, self._hash)
        state = self._state.index_select(0, places.index)
        values = self._with_repeats(values, state, places)
        exceeds = values > places.of_frames(state[:, _LIMITS])
        bits = torch.mv(exceeds.float(), self._bits).long()  # exact under autocast as well

        shape = tuple(frames.shape[1:])
        strange, due = [], []
        pairs = zip(places.hosts, places.frames, elapsed_seconds, strict=True)
        for place, (host, own, elapsed) in enumerate(pairs):
            strange.append(host.strange(shape, own))
            if (passed := host.due(elapsed)) is not None:
                due.append((place, passed))
        if any(strange):
            bits += 32 * upload(torch.tensor(places.first(strange)).long(), device)
        codes = self._codes.index_select(0, bits)
        if usable is not None:
            codes = codes.masked_fill(usable[: len(codes)] == 0.0, len(QUALITY))
        counts = places.per_row(self._one_hot.index_select(0, codes))
        self._since.index_add_(0, places.index, counts)
        if due:
            self._sample(values, codes, places, due)
        return codes, counts

    def _with_repeats(self, values: Tensor, state: Tensor, places: Places) -> Tensor:
        """Append how often on end a frame has equalled the one before it, exact to 3."""
        held = state[:, _RUN]
        equal = (values == places.before(state[:, _NEWEST], values)).all(dim=1)
        run = equal
        for _ in range(places.longest):
            run = (1.0 + places.before(held, run)) * equal
        values = torch.cat([values, run.unsqueeze(1)], dim=1)
        newest = places.last(state[:, _NEWEST.start :], values)
        self._state[:, _NEWEST.start :].index_copy_(0, places.index, newest)
        return values

    def _sample(
        self, values: Tensor, codes: Tensor, places: Places, due: Sequence[tuple[int, float]]
    ) -> None:
        """Take a sample of the rows that are due, the median of their good frames of this step.

        Args:
            values: of `_measures`, and the repeats.
            codes: `[frames]`.
            places: of the step.
            due: index into the step's rows, and seconds since their last samples.
        """
        device = self._state.device
        rows = [places.key[0][place] for place, _ in due]
        slots = [places.hosts[place].samples % _SAMPLES for place, _ in due]
        table = torch.tensor([rows, [place for place, _ in due], slots])
        index, place, slot = upload(table, device).unbind()
        passed = upload(torch.tensor([seconds for _, seconds in due], dtype=torch.float32), device)

        state = self._state.index_select(0, index)
        since = self._since.index_select(0, index)
        self._since.index_fill_(0, index, 0)
        lost = since[:, 2] + since[:, 3]
        on_end = (lost > 0) & (lost == since.sum(dim=1))
        # The time before the first such frames does not count: the camera may have been off.
        waited = torch.where(on_end, (state[:, _LOST] + passed).clamp(min=0.0), -math.inf)
        anew = waited >= _PATIENCE_SECONDS
        state[:, _LOST] = waited.masked_fill(anew, -math.inf)
        state[:, _GOOD] = (state[:, _GOOD] + since[:, 0]).clamp(max=ENOUGH_FRAMES)

        own = (places.entries == place.unsqueeze(1)) & (codes == 0)
        sample = values[:, 1:4].where(own.unsqueeze(2), math.nan)
        sample = sample.nanmedian(dim=1).values.unsqueeze(1)
        here = (self._slots == slot.unsqueeze(1)).unsqueeze(2) & (sample == sample)
        samples = self._samples.index_select(0, index).masked_fill(anew.view(-1, 1, 1), math.nan)
        samples = samples.where(~here, sample)
        self._samples.index_copy_(0, index, samples)
        usual = samples.nanmedian(dim=1).values
        state[:, _LIMITS] = _limits(usual, state[:, _GOOD] >= ENOUGH_FRAMES)
        self._state.index_copy_(0, index, state)


def _code(bits: int) -> int:
    """The verdict on a frame, by which limits it exceeds; 32 stands for a strange shape."""
    finite, contrasty, bright, clipped, frozen, strange = (bits >> at & 1 for at in range(6))
    black = not contrasty and not bright
    found = (not finite, strange, black, not contrasty or clipped, frozen, True)
    order = ("nonfinite", "shape", "black", "saturated", "frozen", "good")
    return QUALITY.index(order[found.index(True)])


def _limits(usual: Tensor, known: Tensor) -> Tensor:
    """What values of `_measures` and repeats must exceed, `[rows, 6]`, to set the bits of `_code`.

    Args:
        usual: contrast, level and share of cells at the maximum, `[rows, 3]`.
        known: whether there have been enough good frames, `[rows]`.
    """
    contrast, level, clipped = usual.unbind(dim=1)
    columns = [
        torch.full_like(level, -1.0),  # every number does
        torch.where(known & (contrast > 0.0), _LOST_CONTRAST * contrast, -1.0),
        level + contrast,
        torch.where(known & (clipped < _USUALLY_CLIPPED), _CLIPPED, math.inf),
        torch.full_like(level, math.inf),
        torch.where(known, REPEATS - 0.5, math.inf),
    ]
    return torch.stack(columns, dim=1)
