"""Which of a stream's frames are worth comparing."""

from __future__ import annotations

import math

_MOST_FRAMES = 64  # of a step
_LIKENESS_FRAMES = 64.0  # that the mean gap is of
_LONGEST_SECONDS = 4.0
_ALIKE = 15 / 17  # correlation of compared frames on end, wanted: sixteen are worth one


class Spacing:
    """Chooses frames of one stream to compare, far enough apart to say something new.

    At 25 frames a second one frame says what the last one said. What compared frames say is
    correlated; taken for exponential in time, that tells how far apart sixteen of them would say
    as much as an independent one. Frames of which each is another picture are all chosen.

    Attributes:
        seconds: from one compared frame to the next, at least; 4 at most.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = math.inf  # the last one that was compared
        self._gap = 0.0  # mean of those that were

    def pass_time(self, seconds: float) -> None:
        """A step's frames came, so long after those before them."""
        self._since += seconds

    def choose(self, own: list[int], seconds: float) -> list[int]:
        """Some of a step's frames, evenly.

        Args:
            own: their places in the batch.
            seconds: that they span.
        """
        most = min(len(own), _MOST_FRAMES)
        if not most or self._since < self.seconds * (1.0 - 1e-9):
            return []
        if self.seconds > 0.0:
            most = min(most, max(1, int(seconds / self.seconds + 1e-9)))
        chosen = own[:: -(-len(own) // most)]
        span = self._since if self._since <= _LONGEST_SECONDS + seconds else seconds
        weight = min(1.0, len(chosen) / _LIKENESS_FRAMES)
        self._gap += weight * (span / len(chosen) - self._gap)
        self._since = 0.0
        return chosen

    def measured(self, alike: float) -> None:
        """Compared frames on end were so much alike, a correlation."""
        self.seconds = 0.0
        if alike > 0.0 and self._gap > 0.0:
            wanted = self._gap * math.log(_ALIKE) / math.log(alike)
            self.seconds = min(wanted, _LONGEST_SECONDS)
