"""A line on a terminal that says how far something is and how long it will take."""

from __future__ import annotations

import sys
import time

_SECONDS_BETWEEN_LINES = 0.1
_CELLS = 24


class ProgressBar:
    """Draws over itself on stderr; nothing at all where that is not a terminal.

    The time left is that of the work done since the first call: what was there before took none.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._shown = sys.stderr.isatty()
        self._started: tuple[float, int] | None = None
        self._last = 0.0

    def __call__(self, done: int, total: int, words: str) -> None:
        """Show that `done` of `total` is done; 0 is still getting ready."""
        now = time.monotonic()
        if self._started is None and done:
            self._started = now, done
        if self._shown and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            bar = "#" * (_CELLS * done // total)
            left = self._seconds_left(now, done, total)
            share = f"[{bar:<{_CELLS}}] {100 * done // total:3d} %{left}  " if done else ""
            sys.stderr.write(f"\r\x1b[K{share}{self._prefix}{words}")
            sys.stderr.flush()

    def close(self) -> None:
        """Take the line away."""
        if self._shown and self._last:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _seconds_left(self, now: float, done: int, total: int) -> str:
        if self._started is None or done == self._started[1]:
            return ""
        began, before = self._started
        seconds = round((now - began) * (total - done) / (done - before))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return f" {clock} left"
