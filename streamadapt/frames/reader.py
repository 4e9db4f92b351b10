"""A camera in a thread of its own, which comes back after outages and never holds up the model."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from threading import Condition
from typing import Literal, Self

from streamadapt.closing import Closing
from streamadapt.errors import ConfigurationError, one_line
from streamadapt.frames.backoff import Backoff
from streamadapt.frames.frame import Frame, Picture
from streamadapt.frames.mailbox import Counts, Delivery, Mailbox
from streamadapt.frames.screening import Screen
from streamadapt.frames.source import Source, SourceError, SourceLostError
from streamadapt.frames.timeline import Timeline
from streamadapt.frames.urls import redacted

State = Literal["connecting", "running", "reconnecting", "ended", "failed", "closed"]
"""`reconnecting`: it is away, and tried again now and then; `ended`: a file at its end; `failed`:
it cannot be used, see `CameraStatus.trouble`."""

_STABLE_SECONDS = 10.0  # of frames, after which an outage begins a new count of attempts
_LATE = 1.25  # of the usual time between two frames
_CLOSE_SECONDS = 0.9  # that closing waits for a thread that connects
log = logging.getLogger("streamadapt")


@dataclass(frozen=True)
class CameraStatus:
    """What a reader is doing.

    Attributes:
        stream_id: the camera's name.
        source: where it reads from, without credentials.
        state: what it does.
        trouble: why it is away or failed; None while it runs.
        counts: its frames.
        outages: how often it went away.
        attempts: how often on end it was tried in vain.
    """

    stream_id: Hashable
    source: str
    state: State
    trouble: str | None
    counts: Counts
    outages: int
    attempts: int


class FrameReader(Closing):
    """Frames of one source, read ahead by a thread; iterate over it, or `take` what is there.

    The thread begins with the first frame that is asked for, or with `start`. Closing takes a
    second at most; a thread that is waiting for a camera then ends by itself, within the source's
    own time limit.

    Args:
        source: what is read.
        stream_id: the camera's name.
        delivery: which frames are handed on.
        backoff: how a live source is tried again.
        warm_up_frames: after an outage that nothing is learned from.
        loop: a file begins anew at its end.
        pace: a file is read no faster than it was taken.
        bell: rung when something changes; several readers may share one.
        on_change: called with the status when the state changes, by the reader's thread.
    """

    def __init__(
        self,
        source: Source,
        *,
        stream_id: Hashable,
        delivery: Delivery,
        backoff: Backoff | None = None,
        warm_up_frames: int = 8,
        loop: bool = False,
        pace: bool = False,
        bell: Condition | None = None,
        on_change: Callable[[CameraStatus], None] | None = None,
    ) -> None:
        self.stream_id, self.source = stream_id, source
        self._backoff = backoff or Backoff()
        self._loop, self._pace = loop, pace and not source.is_live
        self.is_live = source.is_live or self._pace
        self._bell = bell or Condition()
        self._mailbox = Mailbox(delivery, bell=self._bell)
        self.room = delivery.room
        self._learn_seconds = delivery.learn_seconds
        self._screen = Screen(warm_up_frames=warm_up_frames)
        self._timeline = Timeline(is_live=source.is_live)
        self._on_change = on_change
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._state: State = "connecting"
        self._error: SourceError | None = None
        self._trouble: str | None = None
        self._outages = self._attempts = 0
        self._shape: object = None
        self._interrupted = True
        self._paced: float | None = None
        self._arrived: float | None = None

    # For whoever takes the frames -------------------------------------------------------------

    def start(self) -> Self:
        """Begin to read."""
        with self._bell:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(
                    target=self._run, name=f"streamadapt {self.stream_id}", daemon=True
                )
                self._thread.start()
        return self

    def share(self, bell: Condition) -> None:
        """Ring another bell from now on, that readers are waited for with together.

        Raises:
            ConfigurationError: it has started.
        """
        if self._thread is not None:
            raise ConfigurationError(
                f"The reader of {self.stream_id!r} is in use. Give a pipeline one that is not."
            )
        self._bell = self._mailbox.bell = bell

    def take(self) -> Frame | None:
        """The next frame if there is one, without waiting."""
        return self._mailbox.take()

    def get(self, *, timeout: float | None = None) -> Frame | None:
        """The next frame; None: there are no more, or none came within `timeout` seconds.

        Raises:
            SourceError: the source cannot be used.
        """
        self.start()
        with self._bell:
            self._bell.wait_for(self._something, timeout)
            frame = self._mailbox.take()
        if frame is None and self._error is not None:
            raise self._error
        return frame

    def __iter__(self) -> Iterator[Frame]:
        """Every frame that is handed on, until the end, or until it is closed.

        Raises:
            SourceError: the source cannot be used.
        """
        while (frame := self.get()) is not None:
            yield frame

    def oldest(self) -> float | None:
        """When the next frame arrived, on `time.monotonic`; None: there is none."""
        return self._mailbox.oldest()

    @property
    def exhausted(self) -> bool:
        """Whether all frames were taken and none will come."""
        return self._mailbox.exhausted

    @property
    def waiting(self) -> int:
        """Frames that are there."""
        return self._mailbox.waiting

    @property
    def finished(self) -> bool:
        """Whether no more frames will be read."""
        return self._mailbox.finished

    def expected(self) -> float | None:
        """When the next frame ought to come, on `time.monotonic`; None: it is late, or away."""
        arrived, usual = self._arrived, self._timeline.usual_seconds
        if self._state != "running" or arrived is None:
            return None
        return None if time.monotonic() > arrived + _LATE * usual else arrived + usual

    @property
    def error(self) -> SourceError | None:
        """Why the source cannot be used."""
        return self._error

    @property
    def status(self) -> CameraStatus:
        """What it is doing."""
        with self._bell:
            return CameraStatus(
                self.stream_id,
                self.source.name,
                self._state,
                self._trouble,
                self._mailbox.counts,
                self._outages,
                self._attempts,
            )

    def ask_to_stop(self) -> None:
        """Stop reading soon; frames that wait are dropped."""
        self._stop.set()
        self._mailbox.close()

    def close(self, *, wait_seconds: float = _CLOSE_SECONDS) -> None:
        """Stop reading; frames that wait are dropped.

        Args:
            wait_seconds: for the thread, which may be waiting for its camera.
        """
        self.ask_to_stop()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(wait_seconds)
            if thread.is_alive():
                log.info("%s: its thread ends as soon as it is answered", self.source.name)
        if self._state not in ("ended", "failed"):
            self._change("closed", None)

    def __enter__(self) -> Self:
        return self.start()

    def _something(self) -> bool:
        return self._mailbox.oldest() is not None or self._mailbox.exhausted

    # The thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        away_since, tries = time.monotonic(), 0
        try:
            while not self._stop.is_set():
                began, before = None, self._mailbox.counts.received
                try:
                    self.source.open()
                    began = time.monotonic()
                    if not self._read_all():
                        return
                    if not self.source.returns:
                        if not self._loop or self._mailbox.counts.received == before:
                            self._change("ended", None)
                            return
                        self._interrupted = True
                        continue
                    raise SourceLostError(f"{self.source.name}: the stream ended.")
                except SourceLostError as error:
                    if self._state == "running":
                        self._outages += 1
                        away_since = time.monotonic()
                    if began is not None and time.monotonic() - began > _STABLE_SECONDS:
                        tries = 0
                    self._attempts += 1
                    self._lost(str(error), away_since)
                finally:
                    self._shut()
                self._stop.wait(self._backoff.wait_seconds(tries))
                tries += 1
        except SourceError as error:
            self._fail(error)
        except Exception as error:
            log.exception("%s: reading failed", self.source.name)
            self._fail(SourceError(f"{self.source.name}: {redacted(one_line(error))}"))
        finally:
            self._mailbox.finish()

    def _read_all(self) -> bool:
        """Until the source's end; False: the reader was closed."""
        while not self._stop.is_set():
            picture = self.source.read()
            if picture is None:
                return not self._stop.is_set()
            if not self._mailbox.put(self._frame(picture)):
                return False
            if self._state != "running":
                self._attempts = 0
                self._change("running", None)
        return False

    def _frame(self, picture: Picture) -> Frame:
        arrived = time.monotonic()
        shape = getattr(picture.data, "shape", None)
        if self._interrupted and self._outages:
            self._screen.interrupted()
        changed = shape != self._shape and self._shape is not None
        seconds, follows = self._timeline.next(
            picture.pts_seconds, arrived, interrupted=self._interrupted
        )
        self._interrupted, self._shape = False, shape
        if self._pace:
            arrived = self._wait_for(seconds)
        self._arrived = arrived
        rejection = self._screen.judge(picture.data, corrupt=picture.corrupt)
        if rejection is None and self.source.is_live:
            behind = self._timeline.behind_seconds(picture.pts_seconds, arrived)
            rejection = "stale" if behind > self._learn_seconds else None
        return Frame(
            data=picture.data,
            stream_id=self.stream_id,
            frame_id=next(self._numbers),
            pts_seconds=seconds,
            wallclock=time.time(),
            arrived=arrived,
            is_live=self.is_live,
            discontinuity=changed or not follows,
            rejection=rejection,
            decode_seconds=picture.decode_seconds,
        )

    def _wait_for(self, seconds: float) -> float:
        """Wait until a frame of a file is due; when that is."""
        now = time.monotonic()
        if self._paced is None:
            self._paced = now - seconds
        due = self._paced + seconds
        if due > now:
            self._stop.wait(due - now)
        return max(due, now)

    def _lost(self, trouble: str, away_since: float) -> None:
        """Say that the source is away.

        Raises:
            SourceError: it was away for too long.
        """
        self._interrupted = True
        backoff = self._backoff
        limit = backoff.give_up_seconds if self._outages else backoff.first_contact_seconds
        if limit is not None and time.monotonic() - away_since >= limit:
            raise SourceError(f"{trouble} Given up after {limit:g} s.")
        self._change("reconnecting" if self._outages else "connecting", trouble)

    def _fail(self, error: SourceError) -> None:
        self._error = error
        self._change("failed", str(error))

    def _shut(self) -> None:
        try:
            self.source.close()
        except Exception as error:
            log.warning("%s: closing failed: %s", self.source.name, redacted(one_line(error)))

    def _change(self, state: State, trouble: str | None) -> None:
        with self._bell:
            told = state != self._state or trouble != self._trouble
            if self._state == "closed":
                return
            self._state, self._trouble = state, trouble
            self._bell.notify_all()
        if told and self._on_change is not None:
            try:
                self._on_change(self.status)
            except Exception:
                log.exception("on_change of %s raised", self.source.name)
