"""`finalise` with ATen kernels, layer by layer."""

from __future__ import annotations

from torch import Tensor

from streamadapt.ops.finalise.reference import moments


def finalise_layer_(
    sums: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    splits: int,
    positions: int,
    mean: Tensor,
    var: Tensor,
) -> None:
    """See `finalise.finalise_layer_`."""
    frames, channels = mean.shape
    room = sums[: splits * 2 * frames * channels].view(splits, 2, frames, channels)
    found = moments(room, _of_frames(centre, rows, frames), positions)
    for place, one in zip((mean, var), found, strict=True):
        place.copy_(one)


def finalise_(
    sums: Tensor,
    layers: Tensor,
    layer_of_block: Tensor,
    centre: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    var: Tensor,
) -> None:
    """See `finalise.finalise_`."""
    frames = len(mean)
    mean.zero_()
    var.fill_(1.0)
    for offset, splits, positions, start, channels in layers.t().tolist():
        if positions:
            span = slice(start, start + channels)
            part = sums[offset : offset + splits * 2 * frames * channels]
            finalise_layer_(
                part, centre[:, span], rows, splits, positions, mean[:, span], var[:, span]
            )


def _of_frames(table: Tensor, rows: Tensor | None, frames: int) -> Tensor:
    return table[:1].expand(frames, -1) if rows is None else table[rows]
