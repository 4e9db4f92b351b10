"""Work beside a stream: a tenth of a core, a thread only while there is work, and an end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial

import numpy as np
import pytest

from streamadapt.drift import CUSUM, AutoRegression, EDetector, ScoreMonitor
from streamadapt.drift.patient import PatientExecutor
from streamadapt.errors import ConfigurationError

ENOUGH_SECONDS = 60.0


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "streamadapt-patient"]


def ended() -> bool:
    for one in threads():
        one.join(ENOUGH_SECONDS)
    return not threads()


def model() -> AutoRegression:
    return AutoRegression.fit(np.random.default_rng(0).normal(size=300), logarithmic=False)


class Endless:
    """Works until it is told not to."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def __call__(self, *, pause: Callable[[], None]) -> None:
        while True:
            self.begun.set()
            pause()


# A threshold found in slices ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CUSUM, EDetector])
def test_a_threshold_is_the_same_one_however_it_is_found(kind: type[CUSUM | EDetector]) -> None:
    with PatientExecutor() as executor:
        found = executor.submit(kind, model(), expected_run_steps=1000.0, seed=3).result()
    expected = kind(model(), expected_run_steps=1000.0, seed=3)
    assert found.threshold == expected.threshold
    assert found.warning_threshold == expected.warning_threshold


def test_no_slice_of_a_search_is_long() -> None:
    """Half of them below some milliseconds, whatever else the machine does."""
    spent, last = [], time.thread_time()

    def pause() -> None:
        nonlocal last
        now = time.thread_time()
        spent.append(now - last)
        last = now

    EDetector(model(), expected_run_steps=1000.0, pause=pause)
    assert len(spent) > 50
    assert np.median(spent) < 5e-3


def test_a_search_takes_its_share_of_a_core_and_no_more() -> None:
    before = time.process_time(), time.perf_counter()

    def search(*, pause: Callable[[], None]) -> float:
        begun = time.thread_time()
        EDetector(model(), expected_run_steps=1000.0, pause=pause)
        return time.thread_time() - begun

    executor = PatientExecutor(share=0.2)
    worked = executor.submit(search).result()
    elapsed = time.perf_counter() - before[1]
    assert worked < 0.22 * elapsed
    executor.shutdown()


def test_a_monitor_finds_its_thresholds_on_it() -> None:
    with PatientExecutor() as executor:
        monitor = ScoreMonitor(["x"], expected_run_seconds=300.0, executor=executor)
        values = np.random.default_rng(1).normal(size=200)
        for second, value in enumerate(values):
            monitor.observe(second, {"x": float(value)})
    assert ended()
    for second in range(200, 203):
        monitor.observe(second, {"x": 0.0})
    assert monitor.calibrated


# What it runs -------------------------------------------------------------------------------------


def test_what_has_no_pause_is_run_as_it_is() -> None:
    with PatientExecutor() as executor:
        assert executor.submit(int, "7").result() == 7
        assert executor.submit(dict, a=1).result() == {"a": 1}
        assert executor.submit(lambda pause: pause, pause="mine").result() == "mine"
        assert executor.submit(partial(Endless.__init__, Endless())).result() is None
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 / 0).result()
        assert executor.submit(threading.current_thread).result().daemon


def test_what_is_submitted_is_done_in_order_on_one_thread() -> None:
    seen: list[tuple[int, int]] = []
    with PatientExecutor() as executor:
        for k in range(20):
            executor.submit(lambda k=k: seen.append((k, threading.get_ident())))
    assert [k for k, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen}) == 1


def test_there_is_a_thread_only_while_there_is_work() -> None:
    executor = PatientExecutor()
    assert ended()
    for _ in range(2):
        assert executor.submit(int).result() == 0
        assert ended()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_of_nothing_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="share"):
        PatientExecutor(share=share)


# Its end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"wait": False}, {"cancel_futures": True}])
def test_shutdown_gives_up_what_nobody_waits_for(arguments: dict[str, bool]) -> None:
    executor, endless = PatientExecutor(), Endless()
    running, waiting = executor.submit(endless), executor.submit(int)
    assert endless.begun.wait(ENOUGH_SECONDS)
    executor.shutdown(**arguments)
    assert ended()
    for future in (running, waiting):
        with pytest.raises(CancelledError):
            future.result(timeout=ENOUGH_SECONDS)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(int)


def test_who_waits_at_the_end_does_not_wait_for_rests() -> None:
    def work(*, pause: Callable[[], None]) -> int:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.05:
            pass
        pause()
        return 1

    executor = PatientExecutor(share=1e-6)  # a day of rests
    futures = [executor.submit(work) for _ in range(3)]
    executor.shutdown()
    assert [future.result(timeout=0) for future in futures] == [1, 1, 1]
    executor.shutdown()  # twice is no error


def test_a_cancelled_future_is_left_out() -> None:
    executor, endless = PatientExecutor(), Endless()
    executor.submit(endless)
    assert endless.begun.wait(ENOUGH_SECONDS)
    waiting: Future[int] = executor.submit(int)
    assert waiting.cancel()
    executor.shutdown(wait=False)
    assert waiting.cancelled() and ended()


def test_unfinished_work_keeps_no_interpreter_alive() -> None:
    code = """
from streamadapt.drift.patient import PatientExecutor

def endless(*, pause):
    while True:
        pause()

executor = PatientExecutor()
executor.submit(endless)
print("over")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "over\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_begins_anew_with_what_was_unfinished() -> None:
    code = """
import os, threading
from streamadapt.drift.patient import PatientExecutor

parent = os.getpid()
begun = threading.Event()

def late(*, pause):
    begun.set()
    while os.getpid() == parent:
        pause()
    return "the child's"

executor = PatientExecutor()
futures = [executor.submit(late), executor.submit(int)]
begun.wait()
child = os.fork()
if child == 0:
    futures.append(executor.submit(str))
    print([future.result(timeout=60) for future in futures], flush=True)
    executor.shutdown()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print([future.done() for future in futures])
executor.shutdown(wait=False)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "[\"the child's\", 0, '']\n[False, False]\n"
