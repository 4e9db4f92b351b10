"""Work beside a stream that has to go on."""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from streamadapt.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")


class PatientExecutor(Executor):
    """Runs what is submitted one after the other, on a thread that rests most of the time.

    A callable that has an argument `pause`, like `CalibratedDetector` and what is derived from it,
    gets a function there that it calls after about a millisecond of work each time; the thread then
    sleeps for nine times the processor's time that went by. Other callables are run in one go. The
    thread exists while there is work, and keeps no interpreter from its end. After a fork the child
    has a thread of its own from its next `submit` on, which begins anew with what was unfinished.

    Args:
        share: of one core that may be used, in (0, 1].

    Raises:
        ConfigurationError: a share out of range.

    Example:
        >>> with PatientExecutor() as executor:
        ...     print(executor.submit(sum, [1, 2]).result())
        3
    """

    def __init__(self, *, share: float = 0.1) -> None:
        if not 0.0 < share <= 1.0:
            raise ConfigurationError(f"`share` must be in (0, 1], got {share}.")
        self._rest_per_work = 1.0 / share - 1.0
        self._waiting: deque[_Work] = deque()
        self._under_way: _Work | None = None
        self._closed = self._given_up = False
        self._thread: threading.Thread | None
        self._begin()
        _EXECUTORS.add(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `Executor`; `pause=` is filled in where `fn` has it and the caller does not.

        Raises:
            RuntimeError: after `shutdown`.
        """
        future: Future[T] = Future()
        settings: dict[str, Any] = dict(kwargs)
        if "pause" not in settings and _has_pause(fn):
            settings["pause"] = self._pause
        with self._lock:
            if self._closed:
                raise RuntimeError("Cannot submit: the executor has been shut down.")
            self._waiting.append(_Work(future, fn, args, settings))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="streamadapt-patient", daemon=True)
                thread.start()
                self._thread = thread
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and end the thread.

        Args:
            wait: for what was submitted, which goes on without rests. False: it is given up at its
                next pause, and its futures are cancelled.
            cancel_futures: give it up in any case.
        """
        with self._lock:
            self._closed = True
            self._given_up |= cancel_futures or not wait
            given_up = list(self._waiting) if self._given_up else []
            if self._given_up:
                self._waiting.clear()
            thread = self._thread
        self._hurry.set()
        for work in given_up:
            work.give_up()
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def _begin(self) -> None:
        """Neither a thread nor locks that one could hold."""
        self._lock = threading.Lock()
        self._hurry = threading.Event()
        self._thread = None
        if self._under_way is not None:
            self._waiting.appendleft(self._under_way)
            self._under_way = None
        if self._closed:
            self._hurry.set()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._under_way = self._waiting.popleft() if self._waiting else None
                if self._under_way is None:
                    self._thread = None
                    return
                work = self._under_way
            self._resumed = time.thread_time()
            work.do()
            del work  # its result is the caller's alone
            self._rest()

    def _pause(self) -> None:
        self._rest()
        if self._given_up:
            raise CancelledError

    def _rest(self) -> None:
        used = time.thread_time() - self._resumed
        self._hurry.wait(self._rest_per_work * used)
        self._resumed = time.thread_time()


@dataclass(frozen=True, eq=False)
class _Work:
    future: Future[Any]
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def do(self) -> None:
        # Under way already: it was when the process was forked.
        if not self.future.running() and not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.fn(*self.args, **self.kwargs)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def give_up(self) -> None:
        if self.future.cancel():
            self.future.set_running_or_notify_cancel()
        else:  # under way when the process was forked
            self.future.set_exception(CancelledError())


_EXECUTORS: WeakSet[PatientExecutor] = WeakSet()


def _in_child() -> None:
    for executor in _EXECUTORS:
        executor._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _has_pause(fn: Callable[..., Any]) -> bool:
    try:
        return "pause" in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a builtin that does not say
        return False
