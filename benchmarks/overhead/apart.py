"""Variants in processes of their own, as they are deployed.

How much of a step is spent on memory is up to a process: glibc's malloc gives large tensors back to
the kernel when they are freed, and the next step touches every page of them anew. A process that
keeps its memory, by two variables of the environment or by another malloc, does not; it is the
stronger baseline. Models that share a process are in between, by what the others leave them.
"""

from __future__ import annotations

import multiprocessing
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, Self

import torch

from benchmarks.overhead.baselines import eager, warm
from benchmarks.overhead.configurations import Configuration, NotAvailableError, reason, set_up
from benchmarks.overhead.timing import REFERENCE, Budget, Run, Start, Timer
from benchmarks.overhead.variants import variants
from streamadapt.replay.one_thread import keep_freed_memory

STEPS = {1: 3}  # counted in a run, by batch; 1 in others
MALLOC = ("kept", "default")
_PRELOADED = ["benchmarks.overhead.apart", "benchmarks.models", "streamadapt"]
_LEAVING_SECONDS = 10.0


class Apart:
    """Each variant in a process of its own, on the CPU.

    Args:
        malloc: what the processes do with memory that was freed, one of `MALLOC`.
    """

    def __init__(self, malloc: str = "kept") -> None:
        self._keeps = malloc == "kept"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)

    def __call__(self, configuration: Configuration, stack: ExitStack, budget: Budget) -> Start:
        """Sets a configuration up; its processes end with `stack`."""

        def start(name: str, build: Any) -> Run:
            return stack.enter_context(
                _Elsewhere(self._context, configuration, name, budget, keeps=self._keeps)
            )

        return start


class _Elsewhere:
    """A variant that was built in a process of its own, and is run there when it is its turn.

    Args:
        context: to start it in.
        configuration: what to measure.
        name: of the variant, or of the reference; what it builds is looked up there.
        budget: of time; building is stopped when it is used up.
        keeps: memory that was freed.

    Raises:
        NotAvailableError: it cannot be built.
        RuntimeError: building it failed.
    """

    def __init__(
        self,
        context: ForkServerContext,
        configuration: Configuration,
        name: str,
        budget: Budget,
        *,
        keeps: bool,
    ) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(theirs, configuration, name, torch.get_num_threads(), keeps),
            daemon=True,
        )
        self._process.start()
        theirs.close()
        try:
            if not self._pipe.poll(budget.left()):
                raise NotAvailableError("building it took longer than there was time")
            failed = self._answer()
            if failed is not None:
                kind = RuntimeError if failed.get("failed") else NotAvailableError
                raise kind(failed["not_available"])
        except BaseException:
            self.__exit__()
            raise

    def __call__(self, start: int) -> list[float]:
        self._pipe.send(start)
        found: list[float] = self._answer()
        return found

    def phases(self) -> dict[str, int]:
        self._pipe.send(None)
        found: dict[str, int] = self._answer()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join(_LEAVING_SECONDS)

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join(_LEAVING_SECONDS)
            raise RuntimeError(f"its process ended with status {self._process.exitcode}") from None


def _serve(
    pipe: Connection, configuration: Configuration, name: str, threads: int, keeps: bool
) -> None:
    if keeps:
        keep_freed_memory()
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    with ExitStack() as stack:
        try:
            base, setting = set_up(configuration, device, stack)
            stack.enter_context(torch.inference_mode())
            build = eager if name == REFERENCE else variants(device)[name].build
            forward = warm(build(base, setting), setting)
        except Exception as error:
            pipe.send(reason(error))
            return
        pipe.send(None)
        timer = Timer(device, burst=STEPS.get(configuration.batch, 1))
        while (start := pipe.recv()) is not None:
            inputs = setting.batches[start:] + setting.batches[:start]
            # Not counted: caches hold what the process before left there, and its threads may spin.
            forward(inputs[-1])
            pipe.send(timer(forward, inputs))
        pipe.send(getattr(forward, "phases", dict)())
