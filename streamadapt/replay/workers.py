"""Policies on several processes at a time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from torch import nn

from streamadapt.errors import StreamAdaptError
from streamadapt.replay.fingerprint import describe_model
from streamadapt.replay.models import load_model
from streamadapt.replay.one_thread import keep_freed_memory
from streamadapt.replay.policies import build_policy
from streamadapt.replay.recording import open_recording
from streamadapt.replay.scenario import PolicySpec
from streamadapt.replay.unit import Conditions, UnitResult, run_unit

_SECONDS_BETWEEN_REPORTS = 0.1


@dataclass(frozen=True)
class Task:
    """One policy to be run.

    Attributes:
        number: what it is called in reports.
        policy: a pickled `PolicySpec` or `Policy`.
        cost: of the policy, in units of the frozen model.
    """

    number: int
    policy: bytes
    cost: float


@dataclass(frozen=True)
class Setup:
    """What every worker needs.

    Attributes:
        folder: holds the recording.
        key: of the recording.
        conditions: how frames are shown.
        model: the pickled model, or the name that it is loaded by.
        model_sha256: what the model has to be.
    """

    folder: Path
    key: str
    conditions: Conditions
    model: bytes | str
    model_sha256: str


def run_in_workers(
    tasks: Sequence[Task],
    *,
    setup: Setup,
    jobs: int,
    progress: Callable[[int, int, str], None],
    done: Callable[[int, UnitResult], None],
) -> list[int]:
    """Run tasks in processes of their own, each on one thread.

    Processes are spawned: a forked one would share the parent's locks and threads, of which
    PyTorch has many.

    Args:
        tasks: begun in this order.
        setup: what they share.
        jobs: processes at a time.
        progress: called with the number of a task, batches done, and words.
        done: called with the number of a task and what came of it, in any order.

    Returns:
        Numbers of tasks that no worker could run, because it cannot import what they are made of.

    Raises:
        StreamAdaptError: a worker died; and whatever a task raised.
    """
    waiting, refused = list(tasks), list[int]()
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, Any] = {}
    try:
        for _ in range(min(jobs, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()  # so that its death ends the connection
            workers[ours] = process
            ours.send(setup)
            ours.send(waiting.pop(0))
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                kind, number, content = _receive(connection, workers[connection])
                if kind == "progress":
                    progress(number, *content)
                    continue
                if kind == "failed":
                    raise pickle.loads(content)
                if kind == "refused":
                    refused.append(number)
                else:
                    done(number, content)
                if waiting:
                    connection.send(waiting.pop(0))
                else:
                    connection.close()
                    workers.pop(connection).join()
    finally:
        for process in workers.values():
            process.kill()
            process.join()
    return sorted(refused)


def _receive(connection: Connection, process: Any) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join()
        raise StreamAdaptError(
            f"A worker process died (exit code {process.exitcode}). -9 is mostly a lack of memory: "
            "run with fewer jobs. A script that runs a replay with jobs must do so under "
            '`if __name__ == "__main__":`. What has finished is kept in the run directory, if '
            "there is one."
        ) from error


def _work(connection: Connection, parent: int) -> None:
    """A worker's life: a setup, then tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    keep_freed_memory()
    try:
        setup = connection.recv()
        model = _load(setup)
        while True:
            task = connection.recv()
            connection.send(_run(task, setup, model, _Reporter(connection, task.number, parent)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _load(setup: Setup) -> nn.Module | None:
    """The parent's model; None where it cannot be had here."""
    try:
        if isinstance(setup.model, bytes):
            model = pickle.loads(setup.model)
        else:
            model = load_model(setup.model)
        same = describe_model(model)["sha256"] == setup.model_sha256
    except Exception:  # whatever somebody else's classes raise when they are not importable here
        return None
    # A factory that draws its weights makes another model each time.
    return model if same and isinstance(model, nn.Module) else None


def _run(
    task: Task, setup: Setup, model: nn.Module | None, report: Callable[[int, str], None]
) -> tuple[str, int, object]:
    try:
        policy = pickle.loads(task.policy)
    except Exception:  # as above
        policy = None
    if model is None or policy is None:
        return "refused", task.number, None
    try:
        recording = open_recording(setup.folder, key=setup.key)
        assert recording is not None
        if isinstance(policy, PolicySpec):
            rate = setup.conditions.frames_per_second
            policy = build_policy(policy, frames_per_second=rate)
        unit = run_unit(
            policy,
            model,
            recording,
            conditions=setup.conditions,
            cost=task.cost,
            progress=report,
        )
    except Exception as error:
        return "failed", task.number, _portable(error)
    return "done", task.number, unit


def _portable(error: Exception) -> bytes:
    """The error, or what it says where it does not travel; with the place where it arose."""
    where = "".join(traceback.format_exception(error))
    error.__cause__ = error.__context__ = None
    for candidate in (error, RuntimeError(f"{type(error).__name__}: {error}")):
        candidate.add_note(f"In a worker process:\n{where}")
        try:
            pickled = pickle.dumps(candidate)
            pickle.loads(pickled)  # one with other arguments than its message fails only here
        except Exception:
            continue
        return pickled
    raise AssertionError("a RuntimeError of text travels")


class _Reporter:
    """Tells the parent how far a task is, now and then."""

    def __init__(self, connection: Connection, number: int, parent: int) -> None:
        self._connection, self._number, self._parent = connection, number, parent
        self._last = 0.0

    def __call__(self, done: int, words: str) -> None:
        if os.getppid() != self._parent:
            os._exit(1)  # the parent was killed: nobody wants the answer
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_REPORTS:
            self._last = now
            self._connection.send(("progress", self._number, (done, words)))
