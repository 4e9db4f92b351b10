"""Labels that come later: which answers were right."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_WINDOW_LABELS = 256.0
_FRAMES_OF_A_LABEL = 4.0  # compared frames that tell as much
_ENOUGH_LABELS = 8.0  # to listen to nothing else


@dataclass(frozen=True)
class Answered:
    """Answers to one frame: class on the adapted and on the source's statistics.

    `version` counts how often the row's statistics had been put elsewhere by then.
    """

    row: int
    stream: Hashable
    version: int
    adapted: int
    source: int


class AnswerBook:
    """Answers to frames with an id, until their label comes; the oldest go first.

    Args:
        capacity: how many are kept.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[Hashable, Answered] = OrderedDict()

    def keep(self, identifier: Hashable, answered: Answered) -> None:
        """Keep the answers to a frame; the same id again replaces them."""
        self._kept.pop(identifier, None)
        self._kept[identifier] = answered
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def take(
        self, identifiers: Sequence[Hashable], labels: Sequence[int]
    ) -> list[tuple[Answered, int]]:
        """The answers to those frames that are known, each with its label; they are forgotten."""
        pairs = zip(identifiers, labels, strict=True)
        return [(self._kept.pop(one), label) for one, label in pairs if one in self._kept]


class Labelled:
    """How many answers of a stream were right, adapted and source, over the latest labels."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """The statistics are others."""
        self._labels = self._gained = 0.0

    def add(self, adapted_right: bool, source_right: bool) -> None:
        """Take a label in."""
        keep = 1.0 - 1.0 / _WINDOW_LABELS
        self._labels = keep * self._labels + 1.0
        self._gained = keep * self._gained + float(adapted_right) - float(source_right)

    @property
    def enough(self) -> bool:
        """Whether there are so many that estimates without labels are not asked."""
        return self._labels >= _ENOUGH_LABELS

    @property
    def gain(self) -> float:
        """Share of right answers won by adapting."""
        return self._gained / max(self._labels, 1.0)

    @property
    def frames(self) -> float:
        """Compared frames that would tell as much."""
        return _FRAMES_OF_A_LABEL * self._labels
