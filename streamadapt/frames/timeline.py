"""Camera time without jumps and gaps, made from time stamps as sources give them."""

from __future__ import annotations

from collections import deque
from statistics import median

_USUAL = 25  # intervals that the usual one is taken from
_PERIOD_SECONDS = 1 / 25
_LONGEST_GAP_SECONDS = 2.0  # of a live source; more is an outage
_DRIFT = 1e-3  # by how much two clocks may differ


class Timeline:
    """Time stamps of one camera.

    Where one runs backwards, or follows on an outage, the usual interval between two frames is put
    in its place; also where time stamps begin, which some cameras do not have from the first frame
    on. Time that passed while nothing was seen is no time in which the world changed.

    Args:
        is_live: time stamps may be missing, then the time of arrival is taken; a gap of more than
            2 s is an outage. A file's gaps are its own.
        period_seconds: between frames, where nothing is known of it.

    Attributes:
        usual_seconds: between two frames.
    """

    def __init__(self, *, is_live: bool, period_seconds: float | None = None) -> None:
        self._is_live = is_live
        self._period = period_seconds or _PERIOD_SECONDS
        self._intervals: deque[float] = deque(maxlen=_USUAL)
        self.usual_seconds = self._period
        self._last: float | None = None  # on the source's clock
        self._offset = 0.0
        self._shown = 0.0
        self._soonest: float | None = None  # arrival less time stamp, at its least
        self._arrived = 0.0
        self._stamped = False

    def next(
        self, pts_seconds: float | None, arrived: float, *, interrupted: bool
    ) -> tuple[float, bool]:
        """Camera time of a frame, and whether it follows on the one before.

        Args:
            pts_seconds: the source's time stamp; None: it has none.
            arrived: on a clock that only goes forward.
            interrupted: something came in between.
        """
        stamp = pts_seconds
        another = self._last is not None and self._stamped != (stamp is not None)
        self._stamped = stamp is not None
        if stamp is None:
            following = self._last is not None and not interrupted
            stamp = arrived if self._is_live else (self._last or 0.0) + self._period * following
        if self._last is None:
            self._last, self._offset = stamp, -stamp
            self._shown = 0.0
            return 0.0, False
        passed = stamp - self._last
        gap = self._is_live and passed > _LONGEST_GAP_SECONDS
        broken = interrupted or (not another and (passed < 0.0 or gap))
        self._last = stamp
        if broken or another:
            self._offset = self._shown + self.usual_seconds - stamp
            self._soonest = None
        elif passed > 0.0:
            self._intervals.append(passed)
            self.usual_seconds = median(self._intervals)
        self._shown = max(stamp + self._offset, self._shown)
        return self._shown, not broken

    def behind_seconds(self, pts_seconds: float | None, arrived: float) -> float:
        """How much later a frame came than the soonest did, by its time stamp; 0 without one.

        A source that was held up gives everything at once that it kept meanwhile.
        """
        if pts_seconds is None:
            return 0.0
        late = arrived - pts_seconds
        if self._soonest is not None:
            self._soonest += _DRIFT * (arrived - self._arrived)
        if self._soonest is None or late < self._soonest:
            self._soonest = late
        self._arrived = arrived
        return late - self._soonest
