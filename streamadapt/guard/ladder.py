"""What is done about statistics that hurt: one step after the other, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from streamadapt.guard.settings import Guard

GuardState = Literal["watching", "held", "shrunk", "rolled_back", "pinned"]
"""`held`: no updates, while answers are compared; `shrunk`: drawn halfway to the source;
`rolled_back`: on a former state; `pinned`: on the source, without updates, for a while."""

Action = Literal["hold", "release", "shrink", "rollback", "pin", "unpin"]

_FRAMES_A_PICTURE = 16.0  # that count, of frames that all say the same
# Of an estimator that settles, frames are those that count where they decide something.
_BURST_FRAMES = 64  # compared at a time, as a routine or because something looks suspicious
_SUSPECT_FRAMES = 32  # compared, before updates are held
_DECIDING_FRAMES = 128  # compared, before statistics are touched
_AGAIN_FRAMES = 96  # compared, after they were, before more is done
_CLEAR = 4.0  # margins, at which there is nothing to wait for
_PLAIN = 2.0  # margins, from which an estimate counts for a whole step
_FALL = 2.0  # margins, of an estimator that settles
_FIRST_FRAMES = 256  # seen, from new statistics to the first comparison; then twice as many, ...
_PROBATION_FRAMES = 128  # the same, for statistics that hurt before
_FORGIVEN_FRAMES = 8192  # seen without a loss, from the last step: what was is forgotten
_PAUSE_FRAMES, _LONGEST_PAUSE_FRAMES = 512, 4096  # seen, until a suspicion is heard again, or news
_LATE_FRAMES = 4096.0  # of comparisons that were on their way when statistics were touched, at most
_LONGEST_COOLDOWN_SECONDS = 3600.0
_FORGIVEN_SECONDS = 4.0 * _LONGEST_COOLDOWN_SECONDS  # after a pin, until the next is as short

_STEPS: tuple[tuple[Action, GuardState], ...] = (
    ("shrink", "shrunk"),
    ("rollback", "rolled_back"),
    ("pin", "pinned"),
)


@dataclass(frozen=True)
class Comparison:
    """Adapted answers beside the source's.

    Attributes:
        gain: in the share of right answers.
        frames: it rests on.
        alike: correlation of these, on end.
        labelled: labels told it; otherwise it is estimated.
    """

    gain: float
    frames: float
    alike: float = 0.0
    labelled: bool = False

    @property
    def worth(self) -> float:
        """Frames that count: so many times the independent ones at most."""
        independent = (1.0 - self.alike) / (1.0 + self.alike)
        return self.frames * min(1.0, _FRAMES_A_PICTURE * independent)


class Ladder:
    """The guard's state for one stream. Knows numbers only.

    Watching, it asks for a comparison now and then: soon after statistics are new, later as seldom
    as `Guard.share` says, and when something is suspicious. A loss makes it hold; held, it compares
    all frames until it can decide. What it does then it does in steps, each of which is judged by
    new comparisons; a loss that comes back soon is met with the next step. An estimate a little
    below the margin may be an error of the domain's, so it counts for half a step. Comparisons that
    were still on their way from the device when statistics were touched are not heard: they rest on
    more than their own frames.

    An estimator that settles measures the world anew when it is put on the source. It goes on while
    the stream is held, because it may notice a change of domain by itself, which is what the loss
    is from as a rule; and there is no use in drawing its statistics halfway. It had reasons to
    follow a domain, so harm is rare, and an estimate without labels has errors of each domain's
    own, which more frames do not take away. So what counts as a loss is a fall: twice the margin
    below zero, and below what was estimated over the first frames on these statistics; or four
    margins below zero. And of frames that are alike few count. Any other estimator is hurt most by
    such frames, one class on end, so there all count.

    Args:
        guard: when it acts.
        settles: the estimator does.

    Attributes:
        state: where it is.
    """

    def __init__(self, guard: Guard, *, settles: bool = False) -> None:
        self._guard, self._settles = guard, settles
        self._usual = math.nan  # gain over the first frames on these statistics
        self._longest = _BURST_FRAMES / guard.share - _BURST_FRAMES if guard.share else math.inf
        self.state: GuardState = "watching"
        self._level = 0.0  # steps that were taken and are not forgotten
        self._seen = self._burst = self._late = 0.0
        self._watched_from = 0.0
        self._interval = min(float(_FIRST_FRAMES), self._longest)
        self._due = self._interval if guard.share else math.inf
        self._heard_again, self._pause = 0.0, float(_PAUSE_FRAMES)
        self._greeted_again, self._greeting_pause = 0.0, float(_PAUSE_FRAMES)
        self._pinned_seconds, self._since_pin = 0.0, _FORGIVEN_SECONDS
        self._cooldown = guard.cooldown_seconds

    @property
    def holds(self) -> bool:
        """Whether updates are stopped."""
        return self.state == "pinned" or (self.state != "watching" and not self._settles)

    @property
    def compares(self) -> bool:
        """Whether frames are to be compared."""
        return self.state in ("held", "shrunk", "rolled_back") or self._burst > 0.0

    def seen(self, frames: float, seconds: float) -> Action | None:
        """Frames went by, in so much camera time; says when it is over with the source."""
        self._seen += frames
        self._since_pin += seconds
        if self.state == "watching" and self._burst <= 0.0 and self._seen >= self._due:
            self._burst = _BURST_FRAMES
        if self.state != "pinned":
            return None
        self._pinned_seconds += seconds
        if self._pinned_seconds < self._cooldown:
            return None
        longest = max(_LONGEST_COOLDOWN_SECONDS, self._guard.cooldown_seconds)
        self._cooldown = min(2.0 * self._cooldown, longest)
        self._since_pin, self._level = 0.0, len(_STEPS) - 1.0
        self._watch(_PROBATION_FRAMES)
        return "unpin"

    def suspect(self) -> bool:
        """Something looks as if answers were worse; whether that is looked into."""
        if self.state != "watching" or self._burst > 0.0 or self._seen < self._heard_again:
            return False
        self._heard_again = self._seen + self._pause
        self._pause = min(2.0 * self._pause, _LONGEST_PAUSE_FRAMES)
        self._burst = _BURST_FRAMES
        return True

    def renewed(self) -> None:
        """The statistics are others, of another world; looked at if that is not so all the time."""
        self._usual = math.nan
        if self.state != "watching" or self._seen < self._greeted_again:
            return
        interval = self._interval
        if self._seen - self._greeted_again > _FORGIVEN_FRAMES or not self._greeted_again:
            interval, self._greeting_pause = _FIRST_FRAMES, float(_PAUSE_FRAMES)
        self._greeted_again = self._seen + self._greeting_pause
        self._greeting_pause = min(2.0 * self._greeting_pause, _FORGIVEN_FRAMES)
        self._watch(interval)
        self._burst = _DECIDING_FRAMES if self._settles else _BURST_FRAMES

    def on_source(self) -> Action | None:
        """The estimator has put the stream on the source by itself: there is nothing to hold."""
        if self.state in ("watching", "pinned"):
            return None
        self._watch(_PROBATION_FRAMES)
        return "release"

    def compared(self, now: Comparison, frames: float) -> Action | None:
        """A comparison over `now.frames`, the latest `frames` among them; what is to be done."""
        worth = now.worth if self._settles else now.frames
        lost = worth >= _SUSPECT_FRAMES and self._lost(now)
        self._late = 0.0 if now.frames <= frames else max(0.0, self._late - frames)
        if self.state == "pinned" or self._late > 0.0:
            return None
        if self.state == "watching":
            if lost:
                self.state = "held"
                return "hold"
            if self._burst > 0.0:  # those that arrive after the last one put nothing off
                self._burst -= frames
                if self._burst <= 0.0:
                    self._nothing_found()
            return None
        clear = lost and not self._settles and now.gain < -_CLEAR * self._guard.margin
        wanted = _DECIDING_FRAMES if self.state == "held" else _AGAIN_FRAMES
        if math.isnan(now.gain) or (worth < wanted and not clear):
            return None
        if not lost:
            self._watch(_PROBATION_FRAMES)
            return "release"
        least = 2 if clear or self._settles else 1
        plain = self._settles or now.labelled or now.gain < -_PLAIN * self._guard.margin
        self._level = min(max(self._level + (1.0 if plain else 0.5), least), len(_STEPS))
        action, self.state = _STEPS[int(self._level) - 1]
        self._pause, self._late = float(_PAUSE_FRAMES), _LATE_FRAMES
        if action == "pin":
            self.pin()
        return action

    def _lost(self, now: Comparison) -> bool:
        margin = self._guard.margin
        if now.labelled or not self._settles:
            return now.gain < -margin
        if now.worth >= _DECIDING_FRAMES and math.isnan(self._usual):
            self._usual = now.gain
        limit = -_CLEAR * margin
        if not math.isnan(self._usual):
            limit = max(limit, min(self._usual, 0.0) - _FALL * margin)
        return now.gain < limit

    def pin(self) -> None:
        """Stay on the source for a while, as there is nothing else that helps."""
        if self._since_pin >= _FORGIVEN_SECONDS:
            self._cooldown = self._guard.cooldown_seconds
        self.state, self._pinned_seconds, self._burst = "pinned", 0.0, 0.0
        self._late = _LATE_FRAMES

    def _watch(self, interval: float) -> None:
        """Watch from now on, and compare after so many frames."""
        self.state, self._burst = "watching", 0.0
        self._interval = min(float(interval), self._longest)
        self._due, self._watched_from = self._seen + self._interval, self._seen

    def _nothing_found(self) -> None:
        if self._seen - self._watched_from >= _FORGIVEN_FRAMES:
            self._level = 0.0
        self._burst = 0.0
        self._interval = min(2.0 * self._interval, self._longest)
        self._due = self._seen + self._interval if self._guard.share else math.inf
