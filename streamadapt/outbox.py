"""Events on their way to their handlers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from streamadapt.events import Event

EventHandler = Callable[[Event], None]
log = logging.getLogger("streamadapt")


class Outbox:
    """Collects events during a step and delivers them after it.

    Attributes:
        counts: how many events of each class were posted, by class name; never reset.
        handler_errors: how many calls of handlers raised.
    """

    def __init__(self, handler: EventHandler | None) -> None:
        self._handlers: list[EventHandler] = [] if handler is None else [handler]
        self._waiting: list[Event] = []
        self.counts: Counter[str] = Counter()
        self.handler_errors = 0

    def post(self, event: Event) -> None:
        """Take an event; handlers see it at the next `deliver`."""
        self.counts[type(event).__name__] += 1
        self._waiting.append(event)

    def deliver(self) -> None:
        """Hand everything over. A handler that raises is logged and counted, never felt."""
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            for event in waiting:
                for handler in tuple(self._handlers):
                    try:
                        handler(event)
                    except Exception:
                        self.handler_errors += 1
                        log.exception("an event handler failed on %s", type(event).__name__)

    def subscribe(self, handler: EventHandler) -> Callable[[], None]:
        """Add a handler; returns a function that takes it off again."""
        self._handlers.append(handler)

        def unsubscribe() -> None:
            if handler in self._handlers:
                self._handlers.remove(handler)

        return unsubscribe
