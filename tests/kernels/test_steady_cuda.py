"""A deployed network at rest, as it comes: no step waits for the device."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
import torch

import streamadapt as sa
from benchmarks.overhead.adapting import Cameras
from benchmarks.overhead.configurations import Configuration, set_up

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # Said once by `set_sync_debug_mode` itself.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]
STEPS = 100  # four seconds at 25 frames a second and batch 1: drift is read out every quarter


@pytest.mark.parametrize("streams", [1, 64])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_resnet50_with_the_default_never_waits(dtype: str, streams: int) -> None:
    configuration = Configuration("resnet50", 8, "NHWC", dtype, 224)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        model, setting = set_up(configuration, torch.device("cuda"), stack)
        stack.enter_context(torch.inference_mode())
        processor = stack.enter_context(
            sa.StreamProcessor(
                model,
                max_streams=streams,
                on_event=lambda event: counts.update([type(event).__name__]),
            )
        )
        cameras = Cameras(processor, count=streams, batch=configuration.batch)
        cameras.settle(setting.batches, count=streams)
        processor.flush()
        counts.clear()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for index in range(STEPS):
                cameras(setting.batches[index % len(setting.batches)])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert cameras.phases() == {"resting": streams}
    assert counts["StepCompleted"] == STEPS
    assert counts["UpdateFailed"] == 0
