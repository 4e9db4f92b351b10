"""Frames between a camera's thread and whoever works on them: bounded, and every one counted."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Condition
from typing import Literal

from streamadapt.errors import ConfigurationError
from streamadapt.frames.frame import Frame

Policy = Literal["every", "latest"]
Drop = Literal["superseded", "stale", "overflow", "closed"]
"""Why a frame was not handed on: a newer one came (`latest`), it was too old (`max_staleness`),
there was no room, its reader was closed."""

_OF_EVERY, _OF_LATEST, _OF_STALE = 8, 1, 64


@dataclass(frozen=True)
class Delivery:
    """Which frames of a camera reach the model.

    Args:
        policy: `every`: all of them; the source waits, or what it has no room for is lost there.
            `latest`: as few as it takes to be up to date; the oldest goes first.
        max_staleness: seconds; older frames are dropped when they are asked for. With `latest` as
            many as are younger are kept.
        capacity: frames that wait at most; None: 8, 1, or 64 with `max_staleness`.
        learn_seconds: a live frame that is older, or came so much later than its time stamp, is
            answered, and nothing is learned from it.

    Raises:
        ConfigurationError: an argument out of range.
    """

    policy: Policy
    max_staleness: float | None = None
    capacity: int | None = None
    learn_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.policy not in ("every", "latest"):
            raise ConfigurationError(
                f'`policy` must be "every" or "latest", got {self.policy!r}. To drop frames that '
                "are too old, give `max_staleness` in seconds."
            )
        if self.max_staleness is not None and not self.max_staleness > 0.0:
            raise ConfigurationError(
                f"`max_staleness` must be positive seconds, got {self.max_staleness}."
            )
        if self.capacity is not None and self.capacity < 1:
            raise ConfigurationError(f"`capacity` must be at least 1, got {self.capacity}.")

    @property
    def room(self) -> int:
        """Frames that wait at most."""
        if self.capacity is not None:
            return self.capacity
        if self.max_staleness is not None:
            return _OF_STALE
        return _OF_EVERY if self.policy == "every" else _OF_LATEST


@dataclass(frozen=True)
class Counts:
    """Frames of one camera so far; at any moment `received == delivered + dropped + waiting`.

    Attributes:
        received: taken from the source.
        delivered: handed on.
        drops: not handed on, by reason.
        waiting: for their turn.
    """

    received: int
    delivered: int
    drops: Mapping[str, int]
    waiting: int

    @property
    def dropped(self) -> int:
        """Not handed on, for whatever reason."""
        return sum(self.drops.values())


class Mailbox:
    """Where a camera's thread puts frames.

    Args:
        delivery: which of them are handed on.
        bell: rung at every change; several mailboxes may share one.
        clock: seconds that only go forward, as in `Frame.arrived`.
    """

    def __init__(
        self, delivery: Delivery, *, bell: Condition, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._delivery, self.bell, self._clock = delivery, bell, clock
        self._frames: deque[Frame] = deque()
        self._received = self._delivered = 0
        self._drops: Counter[str] = Counter()
        self._closed = self._finished = False

    def put(self, frame: Frame) -> bool:
        """Put a frame in, with `every` as soon as there is room; False: the mailbox is closed."""
        with self.bell:
            self._received += 1
            if self._delivery.policy == "every":
                self.bell.wait_for(self._has_room)
            if self._closed:
                self._drops["closed"] += 1
                return False
            while len(self._frames) >= self._delivery.room:
                self._frames.popleft()
                stale = self._delivery.max_staleness is not None
                self._drops["overflow" if stale else "superseded"] += 1
            self._frames.append(frame)
            self.bell.notify_all()
            return True

    def take(self) -> Frame | None:
        """The next frame, without waiting."""
        with self.bell:
            self._expire()
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._delivered += 1
            self.bell.notify_all()
        late = frame.is_live and self._clock() - frame.arrived > self._delivery.learn_seconds
        return replace(frame, rejection="stale") if late and frame.rejection is None else frame

    def oldest(self) -> float | None:
        """When the next frame arrived; None: there is none."""
        with self.bell:
            self._expire()
            return self._frames[0].arrived if self._frames else None

    @property
    def waiting(self) -> int:
        """Frames that wait."""
        with self.bell:
            self._expire()
            return len(self._frames)

    def finish(self) -> None:
        """There will be no more frames; those that wait are still handed on."""
        with self.bell:
            self._finished = True
            self.bell.notify_all()

    def close(self) -> None:
        """Nobody asks for frames any more: those that wait are dropped."""
        with self.bell:
            self._closed = self._finished = True
            self._drops["closed"] += len(self._frames)
            self._frames.clear()
            self.bell.notify_all()

    @property
    def finished(self) -> bool:
        """Whether no more frames will come."""
        return self._finished

    @property
    def exhausted(self) -> bool:
        """Whether no frame is there and none will come."""
        with self.bell:
            self._expire()
            return self._finished and not self._frames

    @property
    def counts(self) -> Counts:
        """All at one moment."""
        with self.bell:
            drops = {name: count for name, count in self._drops.items() if count}
            waiting = self._received - self._delivered - sum(drops.values())
            return Counts(self._received, self._delivered, drops, waiting)

    def _has_room(self) -> bool:
        return self._closed or len(self._frames) < self._delivery.room

    def _expire(self) -> None:
        if self._delivery.max_staleness is None:
            return
        oldest = self._clock() - self._delivery.max_staleness
        while self._frames and self._frames[0].arrived < oldest:
            self._frames.popleft()
            self._drops["stale"] += 1
            self.bell.notify_all()
