"""This library's ways of running a network."""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import nullcontext
from itertools import cycle
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import streamadapt as sa
from benchmarks.overhead.baselines import warm
from benchmarks.overhead.configurations import Forward, NotAvailableError, Setting
from streamadapt.ops.compiled import Found

FRAMES_PER_SECOND = 25
SETTLED_AFTER = 72  # frames of a stream
FIND = "streamadapt.backends.find"  # the compiled kernels
LEAST_BATCH = 8  # many cameras at batch 1: as one camera, and long to settle


class Cameras:
    """Frames of cameras in turn, each 25 a second; several are mixed in a batch.

    Args:
        processor: with a row for each.
        count: how many cameras.
        batch: frames of a batch.
    """

    def __init__(self, processor: sa.StreamProcessor, *, count: int, batch: int) -> None:
        self._processor = processor
        self._batch = batch
        self._seconds = 0.0
        self._show(count)

    def __call__(self, frames: Tensor) -> Any:
        """One step."""
        stamps = [self._seconds + index * self._period for index in range(self._batch)]
        self._seconds += self._batch * self._period
        streams = [next(self._turns) for _ in range(self._batch)]
        return self._processor(frames, streams=streams, pts_seconds=stamps)

    def phases(self) -> dict[str, int]:
        """How many cameras are in each of the estimator's phases."""
        self._processor.flush()
        found = (self._processor.phase(name) for name in self._processor.streams)
        return dict(Counter(phase for phase in found if phase is not None))

    def settle(self, batches: tuple[Tensor, ...], *, count: int) -> None:
        """Steps until every camera has settled.

        One does so on its own frames. The others get its state: 64 cameras would take as many
        times longer to get to the same, because all see the same frames.
        """
        self._show(1)
        self._steps(batches, SETTLED_AFTER)
        self._show(count)
        if count == 1:
            return
        snapshots = self._processor._runtime.snapshots
        settled = snapshots.get(self._processor.snapshot("settled", stream=self._names(1)[0]))
        self._steps(batches, count)
        names = self._names(count)
        state = settled.state.take([0] * count)
        snapshots.add(type(settled)("all settled", settled.step, names, state))
        self._processor.rollback("all settled")
        self._steps(batches, 2 * count)

    def _steps(self, batches: tuple[Tensor, ...], frames: int) -> None:
        for index in range(-(-frames // self._batch)):
            self(batches[index % len(batches)])

    def _show(self, count: int) -> None:
        self._turns = cycle(self._names(count))
        self._period = 1 / FRAMES_PER_SECOND / count

    def _names(self, count: int) -> tuple[str, ...]:
        return tuple(f"camera-{index}" for index in range(count))


def adapted(
    model: nn.Module,
    setting: Setting,
    *,
    streams: int = 1,
    captured: bool = False,
    compiled: bool = True,
    **options: Any,
) -> Forward:
    """A `StreamProcessor`, by default as it comes, settled.

    With `captured` as a CUDA graph, without `compiled` as if no compiler had been there.
    """
    batch = setting.configuration.batch
    if streams > 1 and batch < LEAST_BATCH:
        raise NotAvailableError(f"many streams are measured from batch {LEAST_BATCH} on")
    none = nullcontext() if compiled else patch(FIND, return_value=Found(None, "left out"))
    with none:
        made = sa.StreamProcessor(model, max_streams=streams, **options)
    processor = setting.stack.enter_context(made)
    cameras = Cameras(processor, count=streams, batch=batch)
    cameras.settle(setting.batches, count=streams)
    if captured:
        capture = getattr(processor, "capture", None)
        if capture is None:
            raise NotAvailableError("this version's StreamProcessor has no `capture`")
        processor.flush()
        capture(setting.batches[0])
    warm(cameras, setting)
    processor.flush()
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    return cameras
