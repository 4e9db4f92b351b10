"""CORAL on a GPU, against the CPU; the same checks run on the CPU itself."""

from __future__ import annotations

import pytest
import torch

import streamadapt as sa
from streamadapt.alignment import Coral
from streamadapt.alignment.roots import matrix_power, newton_schulz, steps_for
from tests.models import frames, residual

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.kernels,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
DEVICES = ["cpu", CUDA]


def calibrated() -> Coral:
    """The source side of the small network, refreshed so often that every step makes a map."""
    source = [frames(60, seed=seed) for seed in range(3)]
    return Coral.calibrate(residual(), source, half_life_frames=12.0, refresh_frames=1)


@pytest.mark.parametrize("size", [8, 130, 512])
@pytest.mark.parametrize("device", DEVICES)
def test_the_iteration_is_the_inverse_root(device: str, size: int) -> None:
    x = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(0)).double()
    covariance = (
        x.T
        @ x
        / (2 * size)
        * torch.logspace(0, 2, size).double().outer(torch.logspace(0, 2, size).double())
    )
    wanted = matrix_power(covariance, -0.5, ridge=0.1)
    found = newton_schulz(covariance.to(device), ridge=0.1, steps=steps_for(1e8)).cpu()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("max_streams", [1, 3])
@pytest.mark.parametrize("device", DEVICES)
def test_outputs_are_those_of_the_cpu(device: str, max_streams: int) -> None:
    coral = calibrated()
    options = {"estimator": sa.estimators.EMA(), "max_streams": max_streams}
    streams = ["a", "b", "a", "b", "b"] if max_streams > 1 else None
    here = sa.StreamProcessor(residual(), alignment=coral, **options)
    there = sa.StreamProcessor(residual().to(device), alignment=coral, **options)
    with torch.inference_mode():
        for seed in range(6):
            x = frames(5, seed=seed, shift=1.0)
            output = there(x.to(device), streams=streams)
            torch.testing.assert_close(output.cpu(), here(x, streams=streams), rtol=1e-3, atol=1e-3)
    there.flush()
    assert "UpdateFailed" not in there.event_counts
    assert "UpdateRefused" not in there.event_counts


@pytest.mark.kernels
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("max_streams", [1, 3])
def test_no_step_waits_for_the_device(max_streams: int) -> None:
    batches = [frames(5, seed=seed).to("cuda") for seed in range(4)]
    streams = ["a", "b", "c", "a", "b"] if max_streams > 1 else None
    with (
        torch.inference_mode(),
        sa.StreamProcessor(
            residual().to("cuda"),
            estimator=sa.estimators.EMA(),
            alignment=calibrated(),
            max_streams=max_streams,
        ) as processor,
    ):
        for one in batches:
            processor(one, streams=streams)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for one in batches:
                processor(one, streams=streams)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        processor.flush()
        assert processor.event_counts["StepCompleted"] == 2 * len(batches)
        assert "UpdateFailed" not in processor.event_counts
