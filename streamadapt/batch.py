"""Facts about one batch: its size, its streams' frames, its camera time."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from torch import Tensor
from torch.utils import _pytree as pytree

from streamadapt.errors import StreamError
from streamadapt.events import Rejection
from streamadapt.streams import Admission

T = TypeVar("T")
REJECTIONS: tuple[Rejection, ...] = get_args(Rejection)
SECONDS_PER_FRAME = 1 / 25
"""What a frame without a time stamp stands for at least."""


def batch_size(frames: Any) -> int | None:
    """Number of frames: a tensor's first dimension, a list's length, a dict's first tensor.

    None where it cannot be told.
    """
    if isinstance(frames, Tensor):
        return frames.shape[0] if frames.dim() > 0 else None
    if isinstance(frames, list | tuple):
        return len(frames)
    for leaf in pytree.tree_leaves(frames):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return leaf.shape[0]
    return None


def real_frames(valid: int | None, entries: int | None) -> int | None:
    """How many of a batch's frames are no padding.

    Raises:
        StreamError: more than there are, or a batch whose size is unknown.
    """
    if valid is None:
        return entries
    if entries is None:
        raise StreamError(
            "`valid=` needs a batch whose size can be told: a tensor, a list, or a dict of tensors "
            "as the first argument."
        )
    if isinstance(valid, bool) or not isinstance(valid, int) or not 0 <= valid <= entries:
        raise StreamError(
            f"`valid` must be a whole number from 0 to {entries}, the frames of the batch, got "
            f"{valid!r}."
        )
    return valid


def padded(index: Sequence[int], entries: int | None) -> tuple[int, ...]:
    """`index` of the real frames, and the first one's for the padding behind them."""
    missing = 0 if entries is None else entries - len(index)
    return (*index, *([index[0]] * missing))


def stream_ids(
    streams: Hashable | Sequence[Hashable], entries: int | None, real: int | None
) -> Sequence[Hashable]:
    """One stream for each real frame, from one for all or one for each.

    Raises:
        StreamError: wrong length, an unhashable id, or a batch whose size is unknown.
    """
    if entries is None:
        raise StreamError(
            "`streams=` needs a batch whose size can be told: a tensor, a list, or a dict of "
            "tensors as the first argument."
        )
    if isinstance(streams, str | bytes | int) or not isinstance(streams, Sequence):
        listed: Sequence[Hashable] = [streams] * entries
    else:
        listed = streams
    if len(listed) not in (entries, real):
        raise StreamError(
            f"`streams` has {len(listed)} entries for a batch of {entries} frames. Give one entry "
            "a frame, or a single name for all of them."
        )
    for stream in listed[:real]:
        if not isinstance(stream, Hashable):
            raise StreamError(f"A stream must be hashable, such as a string; got {stream!r}.")
    return listed[:real]


def frame_ids(
    ids: Sequence[Hashable | None] | None, entries: int | None, real: int | None
) -> Sequence[Hashable | None] | None:
    """What the real frames may be known by later; None where no frame has an id.

    Raises:
        StreamError: wrong length, an unhashable id, or a batch whose size is unknown.
    """
    found = _one_a_frame("ids", ids, entries, real, "frames that no label will come for")
    for one in found or ():
        if not isinstance(one, Hashable):
            raise StreamError(f"An id must be hashable, such as a string; got {one!r}.")
    return found


def rejections(
    rejected: Sequence[Rejection | None] | None, entries: int | None, real: int | None
) -> Sequence[Rejection | None] | None:
    """Why nothing is to be learned from the real frames; None where it may be from all of them.

    Raises:
        StreamError: wrong length, no known reason, or a batch whose size is unknown.
    """
    found: Sequence[Rejection | None] | None = _one_a_frame(
        "rejected", rejected, entries, real, "frames that may be learned from"
    )
    for one in found or ():
        if one is not None and one not in REJECTIONS:
            known = ", ".join(REJECTIONS)
            raise StreamError(f"`rejected` has {one!r}. Known reasons: {known}.")
    return found


def _one_a_frame(
    name: str, values: Sequence[T | None] | None, entries: int | None, real: int | None, none: str
) -> Sequence[T | None] | None:
    """An argument's values for the real frames; None where there are none. `none`: who has none."""
    if values is None:
        return None
    if entries is None or isinstance(values, str | bytes) or len(values) not in (entries, real):
        found = "a string" if isinstance(values, str | bytes) else f"{len(values)} entries"
        raise StreamError(
            f"`{name}` is {found} for a batch of {entries} frames. Give one entry a frame; None "
            f"for {none}."
        )
    values = values[:real]
    return values if any(one is not None for one in values) else None


def frames_by_stream(admission: Admission, entries: int | None) -> dict[Hashable, int]:
    """How many frames of a batch each stream has."""
    if len(admission.streams) == 1:
        return {admission.streams[0]: entries or 0}
    counts = dict.fromkeys(admission.streams, 0)
    for index in admission.entries:
        counts[admission.streams[index]] += 1
    return counts


def camera_time(
    pts_seconds: float | Sequence[float] | None,
    admission: Admission,
    entries: int,
    total: int,
    previous: Mapping[int, float],
    clock: Callable[[], float],
) -> tuple[list[float], dict[int, float]]:
    """Camera time that passed for each row, and its newest time stamp.

    A row's first frames bring the time they span themselves, stretched by `n / (n - 1)` to cover
    the first of them too; a single first frame brings none. Time that runs backwards counts as
    none. Frames without a time stamp stand for 1/25 s at least: a file that is read faster than
    its camera took it is no camera of a thousand frames a second.

    Args:
        pts_seconds: of each frame, of all frames, or None to ask `clock`.
        admission: the batch's rows.
        entries: how many of the batch's frames are real.
        total: batch size.
        previous: newest time stamp of each row.
        clock: seconds.

    Raises:
        StreamError: wrong length, or not finite.
    """
    if pts_seconds is None:
        stamps = [clock()] * entries
    elif isinstance(pts_seconds, int | float):
        stamps = [float(pts_seconds)] * entries
    else:
        stamps = [float(stamp) for stamp in pts_seconds]
    if len(stamps) not in (entries, total):
        raise StreamError(f"`pts_seconds` has {len(stamps)} entries for a batch of {total} frames.")
    stamps = stamps[:entries]
    if not all(math.isfinite(stamp) for stamp in stamps):
        raise StreamError("`pts_seconds` must be finite.")
    least = SECONDS_PER_FRAME if pts_seconds is None else 0.0
    elapsed, newest = [], {}
    for index, row in enumerate(admission.rows):
        alone = len(admission.rows) == 1
        own = [s for i, s in enumerate(stamps) if alone or admission.entries[i] == index]
        last = max(own)
        if row in previous and admission.streams[index] not in admission.new:
            passed = max(0.0, last - previous[row])
        else:
            span = last - min(own)
            passed = span * len(own) / (len(own) - 1) if len(own) > 1 else 0.0
        elapsed.append(max(passed, least * len(own)))
        newest[row] = last
    return elapsed, newest
