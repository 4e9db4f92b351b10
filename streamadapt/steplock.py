"""One step at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from streamadapt.errors import ConcurrencyError


class StepLock:
    """Serialises steps and state changes of different threads, and refuses steps inside steps.

    A thread that is in a step (in an event handler, say) may change state, but not start another
    step; while the model itself runs it may do neither.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._running = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold the lock for a step.

        Raises:
            ConcurrencyError: this thread is in a step already.
        """
        if self._owner == threading.get_ident():
            raise ConcurrencyError(
                "The processor was called from inside one of its own steps (by the model, or by "
                "an event handler). Start the next step after this one has returned."
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    @contextmanager
    def change(self) -> Iterator[None]:
        """Hold the lock for a change of state; free inside a step, outside its forward.

        Raises:
            ConcurrencyError: called by the model while it runs.
        """
        if self._owner != threading.get_ident():
            with self.step():
                yield
        elif self._running:
            raise ConcurrencyError("The model cannot change the state of its own processor.")
        else:
            yield

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Mark the time in which the model runs."""
        self._running = True
        try:
            yield
        finally:
            self._running = False
