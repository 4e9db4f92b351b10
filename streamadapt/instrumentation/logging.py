"""Events as lines of a log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields

from streamadapt.events import Event, StepCompleted
from streamadapt.frames.urls import redacted


def log_events(
    logger: logging.Logger | None = None, level: int = logging.INFO
) -> Callable[[Event], None]:
    """A handler that writes every event as one line.

    A completed step is routine and goes to DEBUG.

    Args:
        logger: where to; the logger `streamadapt.events` when None.
        level: of all other events.

    Returns:
        What `StreamProcessor(on_event=...)` and `StreamProcessor.subscribe` take.

    >>> from streamadapt.events import FramesRejected
    >>> import sys
    >>> logger = logging.getLogger("doctest")
    >>> logger.addHandler(logging.StreamHandler(sys.stdout))
    >>> log_events(logger, logging.WARNING)(
    ...     FramesRejected(step=7, stream="dock-1", frames=2, reason="nonfinite")
    ... )
    FramesRejected step=7 stream='dock-1' frames=2 reason='nonfinite'
    """
    target = logging.getLogger("streamadapt.events") if logger is None else logger

    def handle(event: Event) -> None:
        of_event = logging.DEBUG if isinstance(event, StepCompleted) else level
        if target.isEnabledFor(of_event):
            target.log(of_event, "%s %s", type(event).__name__, _line(event))

    return handle


def _line(event: Event) -> str:
    # repr() escapes line breaks, so that one event stays one line whatever a message holds; a
    # stream may be called by a URL with a password in it.
    line = " ".join(f"{field.name}={getattr(event, field.name)!r}" for field in fields(event))
    return redacted(line)
