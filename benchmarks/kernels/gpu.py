"""The kernels of a layer on a GPU: `python -m benchmarks.kernels.gpu`.

BatchNorm inputs as ResNet-50 has them. Cold: buffers in turn, several times the last cache
together. Warm: one again and again, as far as it fits. Calls lie in a CUDA graph one after another,
so that launching costs nothing; copies of the same tensor are measured in the same rounds, and
bandwidth is told as a share of theirs: what is read and written, over what a copy reads and writes.
A second graph of copies is the noise.

`--device cpu` runs all of it with PyTorch's kernels and small inputs, to see that it runs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt.layout import BankLayout
from streamadapt.ops.apply import shape_of
from streamadapt.ops.device import DeviceOperations, device_operations
from streamadapt.taps.partials import Partials

# Channels and width, in ResNet-50's order, with how many BatchNorms there are of each.
RESNET50 = {
    (64, 112): 1, (64, 56): 6, (256, 56): 4, (128, 56): 1, (128, 28): 7, (512, 28): 5,
    (256, 28): 1, (256, 14): 11, (1024, 14): 7, (512, 14): 1, (512, 7): 5, (2048, 7): 4,
}  # fmt: skip
LARGE = 8 << 20  # bytes from which on the bandwidth counts
LEAST = 0.90  # of a copy's
CALLS = 20  # of a graph at least
COPY, AGAIN = "copy", "copy again (A/A)"
COLLECT, APPLY, ADD = "collect", "apply + collect", "apply + add + collect"
PASSES = {COPY: 2, AGAIN: 2, COLLECT: 1, APPLY: 2, ADD: 3}  # reads and writes of the tensor


class Timer:
    """Seconds of a call, among many of the same one after another."""

    def __init__(self, run: Callable[[int], Any], *, buffers: int, device: torch.device) -> None:
        self._calls = -(-CALLS // buffers) * buffers
        self._cuda = device.type == "cuda"

        def work() -> None:
            for index in range(self._calls):
                run(index % buffers)

        work()
        self._work = work
        if self._cuda:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
            self._work = graph.replay

    def __call__(self) -> float:
        """Run once."""
        if not self._cuda:
            start = time.perf_counter()
            self._work()
            return (time.perf_counter() - start) / self._calls
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        self._work()
        marks[1].record()
        torch.cuda.synchronize()
        return marks[0].elapsed_time(marks[1]) / 1000 / self._calls


def measure(
    do: DeviceOperations,
    size: Sequence[int],
    *,
    dtype: torch.dtype,
    last: bool,
    warm: bool,
    rounds: int,
    device: torch.device,
    cold_bytes: int,
) -> dict[str, Any]:
    """Median seconds of every kernel on one input, interleaved."""
    generator = torch.Generator(device=device).manual_seed(0)
    order = torch.channels_last if last else torch.contiguous_format
    item = torch.finfo(dtype).bits // 8
    count = 1 if warm else max(2, -(-cold_bytes // (item * math.prod(size))))

    def draw() -> Tensor:
        x = torch.randn(*size, generator=generator, device=device).to(dtype)
        return x.contiguous(memory_format=order)

    inputs = [draw() for _ in range(count)]
    others = [torch.empty_like(x) for x in inputs]
    for one in others:
        one.zero_()
    one, zero = torch.ones(1, size[1], device=device), torch.zeros(1, size[1], device=device)
    shape = shape_of(inputs[0])
    assert shape is not None
    sums = [torch.empty(shape.sums, device=device) for _ in range(min(count, 8))]
    given = (one, zero, zero, None)
    low, high = -math.inf, math.inf

    def copies(k: int) -> None:
        others[k].copy_(inputs[k])

    def collects(k: int) -> None:
        do.collect_partials(inputs[k], zero, None, sums[k % len(sums)])

    def applies(k: int) -> None:
        do.apply_collect_(inputs[k], *given, None, low, high, sums[k % len(sums)])

    def adds(k: int) -> None:
        do.apply_collect_(others[k], *given, inputs[k], -4.0, 4.0, sums[k % len(sums)])

    runs = {COPY: copies, COLLECT: collects, APPLY: applies, AGAIN: copies, ADD: adds}
    timers = {name: Timer(run, buffers=count, device=device) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer())
    median = {name: float(np.median(each)) for name, each in seconds.items()}
    bytes_ = item * math.prod(size)
    rate = {name: PASSES[name] * bytes_ / median[name] for name in median}
    return {
        "input": list(size),
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "NHWC" if last else "NCHW",
        "state": "warm" if warm else "cold",
        "bytes": bytes_,
        "splits": shape.splits,
        "seconds": median,
        "gigabytes_per_second": {name: 1e-9 * one for name, one in rate.items()},
        "share_of_copy": {name: one / rate[COPY] for name, one in rate.items() if name != COPY},
    }


def finalise_seconds(
    do: DeviceOperations, batch: int, *, rounds: int, device: torch.device, width: float
) -> float:
    """Moments of all of ResNet-50's layers from their sums."""
    sizes = [size for size, count in RESNET50.items() for _ in range(count)]
    layout = BankLayout([(str(k), channels, 1e-5) for k, (channels, _) in enumerate(sizes)])
    shapes = [
        shape_of(
            torch.empty(batch, channels, *[max(1, int(side * width))] * 2, device="meta").to(
                torch.float16, memory_format=torch.channels_last
            )
        )
        for channels, side in sizes
    ]
    partials = Partials(layout)
    partials.learn(batch, shapes, device)
    plan = partials.plan(batch)
    assert plan is not None
    blocks = partials.layer_of_block(device)
    room = torch.zeros(2, batch, layout.padded_channels, dtype=torch.float64, device=device)
    centre = torch.zeros(1, layout.padded_channels, device=device)

    def run(_: int) -> None:
        do.finalise_(plan.sums, plan.layers, blocks, centre, None, room[0], room[1])

    timer = Timer(run, buffers=1, device=device)
    return float(np.median([timer() for _ in range(rounds)]))


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="The kernels of a layer on a GPU.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batches", default="1,8,32,64")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="few layers, few rounds")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No CUDA device.")
    do = device_operations("triton" if device.type == "cuda" else "native", device_type=device.type)
    width = 1.0 if device.type == "cuda" else 1 / 14
    cold = 2 << 20
    if device.type == "cuda":
        cold = 4 * torch.cuda.get_device_properties(device).L2_cache_size
    layers = list(RESNET50)[:: 4 if options.quick else 1]
    rounds = min(options.rounds, 3) if options.quick else options.rounds
    cases = [(size, torch.float16, True) for size in layers]
    cases += [(size, torch.float16, False) for size in layers[::3]]
    cases += [(size, torch.float32, True) for size in layers[::4]]
    rows: list[dict[str, Any]] = []
    finalised: dict[str, float] = {}
    with torch.inference_mode():
        for batch in map(int, options.batches.split(",")):
            for (channels, side), dtype, last in cases:
                size = (batch, channels, *[max(1, int(side * width))] * 2)
                for warm in (False, True):
                    rows.append(
                        measure(
                            do,
                            size,
                            dtype=dtype,
                            last=last,
                            warm=warm,
                            rounds=rounds,
                            device=device,
                            cold_bytes=cold,
                        )
                    )
            finalised[str(batch)] = finalise_seconds(
                do, batch, rounds=rounds, device=device, width=width
            )
    header = ["input", "", "", "", "MB", "copy GB/s", COLLECT, APPLY, ADD, "A/A"]
    names = (COLLECT, APPLY, ADD, AGAIN)
    shown = [
        [
            "×".join(map(str, row["input"])),
            row["dtype"],
            row["layout"],
            row["state"],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['gigabytes_per_second'][COPY]:.0f}",
            *(f"{row['share_of_copy'][name]:.2f}" for name in names),
        ]
        for row in rows
    ]
    print(table(header, shown))
    for name, seconds in finalised.items():
        print(f"moments of all layers, batch {name}: {1e6 * seconds:.1f} us")
    claims = []
    for name in (COLLECT, APPLY, ADD):
        found = [
            row["share_of_copy"][name]
            for row in rows
            if row["state"] == "cold" and row["bytes"] >= LARGE
        ]
        if found:
            text = f"{name}: least share of a copy's bandwidth, cold inputs of 8 MiB and more"
            claims.append(Claim.at_least(text, min(found), LEAST))
    output: Path | None = options.output
    if output is None and not options.quick and device.type == "cuda":
        output = RESULTS / "kernels-gpu.json"
    if output is not None:
        write(
            output,
            benchmark="kernels.gpu",
            arguments={"batches": options.batches, "rounds": rounds},
            environment=environment(device),
            results={"rows": rows, "finalise_seconds": finalised},
            claims=claims,
        )
    report(claims, written=output)


if __name__ == "__main__":
    main()
