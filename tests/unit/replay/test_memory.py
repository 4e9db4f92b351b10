"""What a process does with memory that was freed."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, time
from streamadapt.replay.one_thread import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
keep_freed_memory(arenas=1)
before = resident()
blocks = [libc.malloc(1 << 20) for _ in range(200)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking at its end
    libc.free(block)
kept = resident()
give_back_freed_memory(every_seconds=0.05)
end = time.monotonic() + 10
while resident() - before > 20_000 and time.monotonic() < end:
    time.sleep(0.05)
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library")
def test_freed_memory_is_kept_and_given_back_in_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120
    )
    kept, left = map(int, done.stdout.split())
    assert kept > 180_000  # kilobytes
    assert left < 20_000
