"""Small values from the device to the host without waiting for them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Receiver = Callable[[Tensor], None]
_BACKLOG = 64  # steps that may be in flight on the device before the oldest is waited for


class Readouts:
    """Hands values to a receiver: at once on the CPU, a few steps late on CUDA."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Any, Tensor, Receiver]] = deque()

    def submit(self, values: Tensor, receiver: Receiver) -> None:
        """Deliver `values`, on the host, to `receiver`, in order of submission."""
        if values.device.type != "cuda":
            self.flush()
            receiver(values)
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(values.device))
        self._pending.append((copied, host, receiver))
        if len(self._pending) > _BACKLOG:
            self._pending[0][0].synchronize()
        self.poll()

    def poll(self) -> None:
        """Deliver whatever has arrived; never waits."""
        while self._pending and self._pending[0][0].query():
            _, host, receiver = self._pending.popleft()
            receiver(host)

    def flush(self) -> None:
        """Wait for everything and deliver it."""
        while self._pending:
            copied, host, receiver = self._pending.popleft()
            copied.synchronize()
            receiver(host)


class Stopwatch:
    """Seconds between marks: wall clock on the CPU, device events on CUDA.

    Args:
        device: where the timed work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.current_stream(device) if self._cuda else None
        self._marks: list[Any] = []
        self.device = device
        self.timing: Literal["wall", "cuda_event"] = "cuda_event" if self._cuda else "wall"

    def mark(self) -> None:
        """Note the time now, or have the device note it when it gets here."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record(self._stream)
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Durations between consecutive marks. On CUDA only once the last event has happened."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._cuda:
            return [float(a.elapsed_time(b)) / 1000.0 for a, b in pairs]
        return [float(b - a) for a, b in pairs]
