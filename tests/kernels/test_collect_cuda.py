"""Moments and steps on a GPU, against float64 on the CPU; the same checks run on the CPU itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.events import Event, StepCompleted
from streamadapt.ops.collect import Scratch, collect
from streamadapt.ops.collect.reference import collect as reference
from tests.models import residual

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.kernels,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
DEVICES = ["cpu", CUDA]

# Of a few layers in a row; convolutions sum in another order on every device.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2}

SHAPES = {
    "one position": (3, 5, 1, 1),
    "odd": (3, 33, 7, 5),
    "one frame": (1, 64, 14, 14),
    "one channel": (4, 1, 9, 9),
    "large": (2, 8, 112, 112),
    "sequence": (3, 24, 50),
    "volume": (2, 6, 3, 7, 5),
    "no positions": (6, 40),
}


def plain(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats.get(x.dim(), torch.contiguous_format))


def every_other_channel(x: Tensor) -> Tensor:
    larger = torch.full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), 777.0).to(x)
    return larger[:, 1::2].copy_(x)


def unaligned(x: Tensor) -> Tensor:
    """Starts one element behind an aligned address."""
    flat = torch.full((x.numel() + 1,), 777.0).to(x)
    return flat[1:].view(x.shape).copy_(x)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    plain,
    channels_last,
    every_other_channel,
    unaligned,
    transposed,
]


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_moments_are_those_of_the_reference(
    device: str,
    shape: tuple[int, ...],
    layout: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    exact: bool,
) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    for ratio in (0.0, 30.0):
        drawn = (torch.randn(shape, generator=generator) + ratio) * 1.7
        x = layout(drawn.to(device, dtype))
        before = x.clone()
        scratch = Scratch()
        scratch.like(torch.empty(1 << 18, device=device)).fill_(float("nan"))
        staged = collect(x, scratch=scratch, exact=exact)
        assert torch.equal(x, before)
        assert staged.mean.dtype == staged.inverse.dtype == torch.float32
        assert staged.mean.device == x.device
        mean, var = (one.cpu() for one in staged.moments())
        wanted_mean, wanted_var = reference(x.cpu())
        assert mean.shape == var.shape == shape[:2]
        # Half-precision input is exact in fp32, and the sums are fp32 for every dtype.
        sigma = wanted_var.sqrt()
        ulp = wanted_mean.abs() * 2.0**-23
        # A lone channels-last frame may be summed plainly.
        ulps = max(8.0, 4.0 * x[0, 0].numel() ** 0.5) if shape[0] == 1 else 8.0
        allowed = torch.maximum(ulps * ulp, 1e-5 * sigma)
        assert ((mean - wanted_mean).abs() <= allowed).all()
        assert ((var.sqrt() - sigma).abs() <= torch.maximum(4.0 * ulp, 2e-5 * sigma)).all()


class Expected:
    """A lagged EMA of every BatchNorm input, in float64 on the CPU, written from its formula."""

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.model = model.double()
        self.momentum = momentum
        self.seen: dict[nn.BatchNorm2d, Tensor] = {}
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        self.seen[module] = inputs[0]

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        output = self.model(frames.double())
        a = self.momentum
        for module, x in self.seen.items():
            var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            difference = mean - module.running_mean
            module.running_mean += a * difference
            module.running_var.copy_(
                (1 - a) * module.running_var + a * var + a * (1 - a) * difference**2
            )
        return output


def batches(count: int, *, size: int = 4) -> Iterator[Tensor]:
    """A camera whose picture gets brighter and flatter."""
    generator = torch.Generator().manual_seed(3)
    for index in range(count):
        yield torch.randn(size, 3, 13, 11, generator=generator) * (1 - index / 20) + index / 5


def close(a: Tensor, b: Tensor, *, dtype: torch.dtype = torch.float32) -> bool:
    tolerance = TOLERANCE[dtype]
    return torch.allclose(a.double().cpu(), b.double().cpu(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_a_stream_is_followed_as_the_formula_says(device: str, layout: torch.memory_format) -> None:
    expected = Expected(residual(), 0.2)
    model = residual().to(device, memory_format=layout)
    norms = {n: m for n, m in expected.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    estimator = sa.estimators.EMA(momentum=0.2)
    with torch.no_grad(), sa.StreamProcessor(model, estimator=estimator) as processor:
        for frames in batches(8):
            output = processor(frames.to(device).contiguous(memory_format=layout))
            assert output.device.type == device
            assert close(output, expected(frames))
            for name, moments in processor.statistics().items():
                assert close(moments.mean, norms[name].running_mean)
                assert close(moments.var, norms[name].running_var)


@pytest.mark.parametrize("options", [{}, {"timing": "synchronous"}], ids=["lagged", "synchronous"])
@pytest.mark.parametrize("device", DEVICES)
def test_mixed_streams_are_followed_as_each_alone(device: str, options: dict[str, str]) -> None:
    estimator = sa.estimators.EMA(momentum=0.2)
    # Alone: one processor a camera, on the CPU; its batches hold that camera's frames only.
    alone = {
        camera: sa.StreamProcessor(residual(), estimator=estimator, **options) for camera in "ab"
    }
    mixed = sa.StreamProcessor(residual().to(device), estimator=estimator, max_streams=3, **options)
    streams = ["a", "b", "b", "a"]
    with torch.inference_mode(), mixed:
        for frames in batches(6):
            output = mixed(frames.to(device), streams=streams)
            for camera, processor in alone.items():
                rows = [index for index, stream in enumerate(streams) if stream == camera]
                assert close(output[rows], processor(frames[rows]))
        for camera, processor in alone.items():
            there, here = mixed.statistics(camera), processor.statistics()
            for name in here:
                assert close(there[name].mean, here[name].mean)
                assert close(there[name].var, here[name].var)


@pytest.mark.parametrize("device", DEVICES)
def test_the_model_comes_back_bit_exactly(device: str) -> None:
    model = residual().to(device)
    held = {name: (tensor, tensor.clone()) for name, tensor in model.named_buffers()}
    estimator = sa.estimators.EMA()
    with torch.inference_mode(), sa.StreamProcessor(model, estimator=estimator) as processor:
        for frames in batches(3):
            processor(frames.to(device))
    for name, tensor in model.named_buffers():
        same_object, value = held[name]
        assert tensor is same_object
        assert torch.equal(tensor, value)


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batches_and_spoilt_frames_leave_the_state_as_it_should_be(device: str) -> None:
    estimator = sa.estimators.EMA()
    spoilt, clean = (
        sa.StreamProcessor(residual().to(device), estimator=estimator) for _ in range(2)
    )
    frames = next(batches(1)).to(device)
    broken = frames.clone()
    broken[2] = float("nan")
    with torch.inference_mode():
        spoilt(broken)
        clean(frames[[0, 1, 3]])
        after = spoilt.statistics()
        for name, moments in clean.statistics().items():
            assert close(after[name].mean, moments.mean)
            assert close(after[name].var, moments.var)
        assert spoilt(frames[:0]).shape[0] == 0
        for name, moments in spoilt.statistics().items():
            assert torch.equal(moments.mean, after[name].mean)


@pytest.mark.parametrize("device", DEVICES)
def test_every_event_is_there_after_flush(device: str) -> None:
    events: list[Event] = []
    with (
        torch.inference_mode(),
        sa.StreamProcessor(residual().to(device), on_event=events.append) as processor,
    ):
        for frames in batches(7):
            processor(frames.to(device))
        processor.flush()
        steps = [event for event in events if isinstance(event, StepCompleted)]
    assert [event.step for event in steps] == list(range(7))
    assert Counter(event.outcome for event in steps) == {"updated": 7}
    assert {event.timing for event in steps} == {"cuda_event" if device == "cuda" else "wall"}
    assert all(event.inference_seconds > 0 and event.update_seconds > 0 for event in steps)


@pytest.mark.parametrize("device", [CUDA])
def test_half_precision_models_follow_the_same_stream(device: str) -> None:
    estimator = sa.estimators.EMA(momentum=0.2)
    half = sa.StreamProcessor(residual().to(device).half(), estimator=estimator)
    full = sa.StreamProcessor(residual().to(device), estimator=estimator)
    with torch.inference_mode():
        for frames in batches(6):
            output = half(frames.to(device).half())
            wanted = full(frames.to(device))
            assert output.dtype == torch.float16
            assert close(output, wanted, dtype=torch.float16)
        for name, moments in full.statistics().items():
            assert close(half.statistics()[name].mean, moments.mean, dtype=torch.float16)
            assert close(half.statistics()[name].var, moments.var, dtype=torch.float16)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "estimator",
    [sa.estimators.EMA(), sa.estimators.Welford(512), sa.estimators.DUA()],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.parametrize("device", [CUDA])
def test_a_lagged_step_never_waits_for_the_device(
    device: str,
    estimator: sa.estimators.Estimator,
    dtype: torch.dtype,
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    frames = [one.to(device, dtype) for one in batches(8)]
    counts: Counter[str] = Counter()
    model = residual().to(device, dtype)
    with (
        mode(),
        sa.StreamProcessor(
            model,
            estimator=estimator,
            on_event=lambda event: counts.update([type(event).__name__]),
        ) as processor,
    ):
        for one in frames:
            processor(one)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for one in frames:
                processor(one)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        processor.flush()
    assert counts["StepCompleted"] == 2 * len(frames)
    assert counts["UpdateFailed"] == 0
