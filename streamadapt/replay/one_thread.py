"""One thread for arithmetic, and an allocator that keeps what it was given back."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGEST = 2**31 - 1  # both are int


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch work on one thread, and as before afterwards.

    Sums come out the same to the bit only for the same number of threads, so a result would depend
    on the machine and on what else runs beside it. Small frames gain nothing from threads anyway:
    they wait in a spin, which on a busy machine made minutes of three seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory(*, arenas: int | None = None) -> None:
    """Have this process keep freed memory for the next activation of that size.

    glibc maps each large allocation anew and gives it back when it is freed, so the kernel zeroes
    every page of every activation once more for every layer: MobileNetV2 on batches of 64 runs five
    times as fast when it does not (19 to 100 images a second on one core). The same as
    `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` in the environment. Does nothing with
    other C libraries. It is for processes of our own: a library must not decide it for its host.

    Args:
        arenas: heaps at most, to be said before threads start; None: as the C library likes, which
            gives threads heaps of their own, and what is kept in one serves no other thread.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        if arenas is not None:
            mallopt(_M_ARENA_MAX, arenas)


def give_back_freed_memory(*, every_seconds: float) -> None:
    """Have this process give back, now and then, what it keeps of freed memory.

    A heap that holds pictures among small things grows to what was ever in use at once, and for
    minutes a little more. Giving pages back takes some milliseconds of `malloc_trim`, in a thread
    of its own, and a part of them is soon wanted again: every ten seconds that is nothing. Does
    nothing with other C libraries.

    Args:
        every_seconds: from one time to the next.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def run() -> None:
        while True:
            time.sleep(every_seconds)
            trim(0)

    threading.Thread(target=run, name="streamadapt memory", daemon=True).start()
