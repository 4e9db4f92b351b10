"""Some frames of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from streamadapt.transfer import upload
from streamadapt.weighing import StepRows


def real_frames_of(where: StepRows) -> int:
    """How many of the batch's frames are no padding."""
    return (where.batch or 0) if where.valid is None else where.valid


def rows_of_some(where: StepRows, chosen: Sequence[int]) -> StepRows:
    """The rows of a step, for some of its frames."""
    return StepRows(
        where.rows,
        None if where.entries is None else [where.entries[k] for k in chosen],
        where.elapsed_seconds,
        batch=len(chosen),
        ids=None if where.ids is None else [where.ids[k] for k in chosen],
    )


def some_frames(values: Any, chosen: Sequence[int]) -> Any:
    """Some of the frames that tensors of a structure have in their first dimension."""
    first, count = chosen[0], len(chosen)
    if list(chosen) == list(range(first, first + count)):
        return pytree.tree_map_only(Tensor, lambda t: t[first : first + count], values)
    index = torch.tensor(chosen)
    return pytree.tree_map_only(
        Tensor, lambda t: t.index_select(0, upload(index, t.device)), values
    )
