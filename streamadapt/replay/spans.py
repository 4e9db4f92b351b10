"""One visit of one domain: the unit in which a replay is scored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DomainSpan:
    """Where a visit of a domain lies in the stream, and what it was.

    Where domains are mixed or take turns, its frames lie between those of others.

    Attributes:
        name: as in the scenario.
        visit: from 0; how often the stream had been there before.
        corruption: as in the scenario.
        severity: 1 to 5, one number a stretch of the visit; empty where nothing was corrupted.
        first_frame: place of its first frame in the stream.
        frames: how many frames it has.
        mean_run_length: frames in a row of one class, on average; says how correlated it is.
        camera: that it was filmed by; None where there is only one.
    """

    name: str
    visit: int
    corruption: str
    severity: tuple[int, ...]
    first_frame: int
    frames: int
    mean_run_length: float
    camera: str | None = None
