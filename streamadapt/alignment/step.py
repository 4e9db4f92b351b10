"""What happens at an aligned head during one step: features are seen, then moved."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from streamadapt.alignment.groups import FrameGroups
from streamadapt.alignment.rows import AlignmentRows, Proposal
from streamadapt.errors import StreamError, UnsupportedModelError
from streamadapt.ops.reduce import Reduced
from streamadapt.transfer import upload


class HeadStep:
    """One armed step of a head, seen by the thread that started it and by no other.

    Args:
        state: the alignment state of all streams.
        rows: rows of the batch, each once.
        entries: index into `rows` of each batch entry; None when there is one row.
        frames_per_row: items that the head sees of each batch entry.
        observe: keep the features for the update.
    """

    def __init__(
        self,
        state: AlignmentRows,
        rows: Sequence[int],
        entries: Sequence[int] | None,
        *,
        frames_per_row: int,
        observe: bool,
    ) -> None:
        self.thread = threading.get_ident()
        self._state = state
        self._rows = rows
        self._entries = entries
        self._frames_per_row = frames_per_row
        self._observe = observe
        self._seen: Tensor | None = None
        self._finite = torch.empty(0, dtype=torch.bool)
        self._groups: FrameGroups | None = None
        self._failure: Exception | None = None

    def visit(self, x: Tensor) -> Tensor:
        """See the head's input `[items, D]`; returns it aligned, in its own dtype."""
        groups = self._see(x)
        if groups is None:
            return x
        mean, shift, excess = self._state.maps(self._rows)
        if torch.is_grad_enabled():
            excess = excess.clone()  # the graph keeps it while the state moves on
        return groups.scatter(move_features(groups.gather(x), mean, shift, excess))

    def maps(self, x: Tensor, *, one: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See the head's input; returns what `move_features` needs for all items or for each."""
        groups = self._see(x)
        if groups is None:
            size = x.shape[-1]
            return x.new_zeros(size), x.new_zeros(size), x.new_zeros(size, size)
        maps = self._state.maps(self._rows)
        if one or self._entries is None:
            return maps
        index = upload(torch.tensor(self._spread(x.shape[0]), dtype=torch.long), x.device)
        mean, shift, excess = (part[index] for part in maps)
        return mean, shift, excess

    def weigh(self, weights: Tensor) -> Tensor:
        """`weights` `[rows, entries]`, with zero for entries whose features are not finite."""
        if self._seen is None:
            return weights
        entries = weights.shape[1]
        self._finite = torch.isfinite(self._seen).all(dim=1)
        if self._finite.shape[0] % entries != 0:
            return weights
        whole = self._finite.view(entries, -1).all(dim=1)
        self._finite = whole.repeat_interleave(self._finite.shape[0] // entries)
        return weights * whole

    def propose(self, reduced: Reduced) -> Proposal | None:
        """The update of this step; None if the head was not executed.

        Args:
            reduced: the step's BatchNorm moments with the weights of `weigh`: which entries are
                accepted, and how many each row has.

        Raises:
            UnsupportedModelError: the head ran more than once, or not on feature vectors.
        """
        if self._failure is not None:
            raise self._failure
        if self._seen is None:
            return None
        assert self._groups is not None
        items, entries = self._seen.shape[0], reduced.finite.shape[0]
        usable = self._finite
        if items % entries == 0:
            usable = usable & reduced.finite.repeat_interleave(items // entries)
        offered = [entries]
        if self._entries is not None:
            frames = Counter(self._entries)
            offered = [frames[place] for place in range(len(self._rows))]
        return self._state.propose(
            self._rows,
            self._seen,
            usable,
            self._groups,
            accepted=reduced.frames,
            offered=offered,
        )

    def _see(self, x: Tensor) -> FrameGroups | None:
        if x.dim() != 2:
            self._failure = UnsupportedModelError(
                f"The input of the head {self._state.source.layer!r} has shape {list(x.shape)}. "
                "CORAL needs one feature vector a frame: name an nn.Linear behind the pooling."
            )
            return None
        if x.shape[0] == 0:
            return None
        entries = None if self._entries is None else self._spread(x.shape[0])
        groups = FrameGroups(entries, rows=len(self._rows), device=x.device)
        if self._observe:
            if self._seen is not None:
                self._failure = UnsupportedModelError(
                    f"The head {self._state.source.layer!r} is executed several times in a "
                    "forward. CORAL needs one feature vector a frame: calibrate with another "
                    "nn.Linear as `layer=`."
                )
            self._seen = x.detach().double()
            self._groups = groups
        return groups

    def _spread(self, items: int) -> list[int]:
        """The row of each item, as an index into the rows of this step."""
        entries = self._entries
        assert entries is not None
        if items == len(entries):
            return list(entries)
        if items == len(entries) * self._frames_per_row:
            return [entry for entry in entries for _ in range(self._frames_per_row)]
        raise StreamError(
            f"`streams=` cannot be mapped at the head {self._state.source.layer!r}: its input has "
            f"{items} items for a batch of {len(entries)}. If every batch entry becomes the same "
            "number of frames, lying together, give it as `frames_per_row=`; otherwise use one "
            "processor a stream."
        )


def move_features(x: Tensor, mean: Tensor, shift: Tensor, excess: Tensor) -> Tensor:
    """`x + (x - mean) excess + shift` for each row, in fp32 at least, in `x`'s dtype.

    Args:
        x: `[rows, items, D]`.
        mean: `[rows, D]`.
        shift: `[rows, D]`.
        excess: `A - I`, `[rows, D, D]`.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - mean.to(wide.dtype).unsqueeze(1)
        moved = torch.bmm(centred, excess.to(wide.dtype)) + shift.to(wide.dtype).unsqueeze(1)
        return (wide + moved).to(x.dtype)
