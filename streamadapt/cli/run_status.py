"""One screen that says how cameras are, or lines where there is no screen."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from streamadapt.frames import CameraStatus
from streamadapt.frames.urls import redacted
from streamadapt.pipeline.operating import CameraLine

_COLUMNS = ("camera", "state", "fps", "latency", "drift", "statistics", "drops", "outages")
_SECONDS_BETWEEN_LINES = 60.0
_COLOURS = {"running": "32", "connecting": "33", "reconnecting": "33", "failed": "31"}


class StatusScreen:
    """Draws a table of cameras over itself on a terminal; elsewhere a line a camera and minute.

    Changes of a camera are told at once, on both.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._drawn = 0
        self._last = time.monotonic()

    def changed(self, status: CameraStatus) -> None:
        """A camera came, went or failed."""
        trouble = f": {status.trouble}" if status.trouble else ""
        self.say(f"{redacted(str(status.stream_id))}: {status.state}{trouble}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
        sys.stderr.write(f"{text}\n" if self._terminal else f"{stamp} {text}\n")
        sys.stderr.flush()

    def draw(self, lines: Sequence[CameraLine], *, killed: bool) -> None:
        """How all cameras are."""
        now = time.monotonic()
        if not self._terminal:
            if now - self._last >= _SECONDS_BETWEEN_LINES:
                self._last = now
                for cells in map(_cells, lines):
                    pairs = zip(_COLUMNS[1:], cells[1:], strict=True)
                    self.say(f"{cells[0]}: " + ", ".join(f"{k} {v}" for k, v in pairs))
            return
        table = [list(_COLUMNS), *map(_cells, lines)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        text = []
        for index, cells in enumerate(table):
            padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            if index:
                colour = _COLOURS.get(cells[1], "0")
                padded[1] = f"\x1b[{colour}m{padded[1]}\x1b[0m"
            text.append("  ".join(padded).rstrip())
        if killed:
            text.append("\x1b[31mkill switch on: every camera is on source statistics\x1b[0m")
        self._clear()
        sys.stderr.write("\n".join(text) + "\n")
        sys.stderr.flush()
        self._drawn = len(text)

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0


def _cells(line: CameraLine) -> list[str]:
    status, reading = line.status, line.reading
    drift = "–" if reading is None or reading.drift is None else f"{reading.drift:.2f}"
    said = "–" if reading is None else reading.action.replace("_", " ")
    if reading is not None and reading.action == "adapting" and reading.phase is not None:
        said = reading.phase
    return [
        redacted(str(status.stream_id)),
        status.state,
        f"{line.fps:.1f}",
        f"{1000 * line.latency_seconds:.0f} ms",
        drift,
        said,
        str(status.counts.dropped),
        str(status.outages),
    ]
