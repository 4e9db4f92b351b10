"""Between host and device: values up without waiting, and whether the host may look at one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _Mode(threading.local):
    capturing = False


_mode = _Mode()


@contextmanager
def capturing() -> Iterator[None]:
    """What this thread does now will be done again without the host.

    Nothing may depend on values that the host has seen, or on memory that it owns.
    """
    before, _mode.capturing = _mode.capturing, True
    try:
        yield
    finally:
        _mode.capturing = before


def is_capturing() -> bool:
    """Whether this thread is inside `capturing`."""
    return _mode.capturing


def host_sees(values: Tensor) -> bool:
    """Whether the host may branch on `values`: without waiting, and not for all times to come."""
    return values.device.type == "cpu" and not _mode.capturing


def upload(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`. A copy from pageable memory would make the host wait for CUDA.

    Raises:
        RuntimeError: inside `capturing`; the host's memory would be read again long after.
    """
    if _mode.capturing:
        raise RuntimeError("a value of the host's cannot be part of a captured step")
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
