"""The compiled kernels alone: `python -m benchmarks.kernels.cpu`.

BatchNorm inputs as ResNets and MobileNetV2 have them. Cold: one of many buffers, several times the
last cache together, so that each comes from memory. Warm: the same one again, as far as it fits.
Beside each kernel, what it is to be measured by: for moments the time that `x.sum()` takes on the
same tensor, for application with moments the same kernel without them, for both the memory that is
moved, over what a copy moves in the same run. On one thread: how threads are shared out is seen in
`benchmarks.overhead`.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt.ops.compiled import LayerCall, find

SHAPES = (
    (64, 112, 112), (64, 56, 56), (256, 56, 56), (128, 28, 28), (512, 28, 28),
    (256, 14, 14), (1024, 14, 14), (512, 7, 7), (2048, 7, 7),
    (96, 112, 112), (144, 56, 56), (192, 28, 28), (576, 14, 14), (960, 7, 7),
)  # fmt: skip
COLD_BYTES = 4 * 32 << 20
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
MOMENTS, FUSED = "moments", "apply + moments, in place"


class Kernel:
    """One way of calling the layer kernel on any of several buffers."""

    def __init__(self, buffers: Sequence[Tensor], *, apply: bool, moments: bool) -> None:
        frames, channels, height, width = buffers[0].shape
        self._kept = (
            torch.rand(channels),
            torch.zeros(channels),
            torch.empty(2, frames, channels, dtype=torch.float64),
        )
        scale, shift, room = self._kept
        self._calls = [
            LayerCall(
                x=x.data_ptr(),
                y=x.data_ptr() if apply else None,
                scale=scale.data_ptr(),
                shift=shift.data_ptr(),
                mean=room[0].data_ptr() if moments else None,
                var=room[1].data_ptr(),
                frames=frames,
                channels=channels,
                positions=height * width,
                frame_stride=channels,
                low=-math.inf,
                high=math.inf,
                channels_last=int(not x.is_contiguous()),
                threads=torch.get_num_threads(),
            )
            for x in buffers
        ]
        self._addresses = [ctypes.addressof(call) for call in self._calls]
        kernels = find().kernels
        assert kernels is not None
        self._run = kernels.run_layer

    def __call__(self, index: int) -> None:
        self._run(self._addresses[index])


def measure(shape: tuple[int, ...], layout: str, *, warm: bool, rounds: int) -> dict[str, float]:
    """Median seconds of everything, interleaved."""
    generator = torch.Generator().manual_seed(0)
    size = 4 * math.prod(shape)
    count = 1 if warm else max(2, -(-COLD_BYTES // size))
    buffers = [
        torch.randn(shape, generator=generator).contiguous(memory_format=LAYOUTS[layout])
        for _ in range(count)
    ]
    targets = [torch.empty_like(x) for x in buffers[: max(1, count // 2)]]
    one, zero = torch.ones(shape[1]), torch.zeros(shape[1])

    def norm(index: int) -> None:
        torch.nn.functional.batch_norm(buffers[index], zero, one, one, zero, False, 0.0, 1e-5)

    timed: dict[str, Callable[[int], Any]] = {
        "copy": lambda k: targets[k % len(targets)].copy_(buffers[k]),
        "sum": lambda k: buffers[k].sum(),
        "batch_norm": norm,
        MOMENTS: Kernel(buffers, apply=False, moments=True),
        "apply, in place": Kernel(buffers, apply=True, moments=False),
        FUSED: Kernel(buffers, apply=True, moments=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    with torch.inference_mode():
        for number in range(rounds + 3):
            for offset, (name, run) in enumerate(timed.items()):
                index = (number * len(timed) + offset) % count
                started = time.perf_counter()
                run(index)
                taken = time.perf_counter() - started
                if number >= 3:
                    seconds[name].append(taken)
    return {name: float(np.median(each)) for name, each in seconds.items()}


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="The compiled kernels alone.")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels-cpu.json")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = environment()
    found = find()
    if found.kernels is None:
        raise SystemExit(f"No kernels: {found.problem}")
    rows: list[dict[str, Any]] = []
    for batch in map(int, options.batches.split(",")):
        for shape in SHAPES:
            for layout in LAYOUTS:
                for state in ("cold", "warm"):
                    whole = (batch, *shape)
                    each = measure(whole, layout, warm=state == "warm", rounds=options.rounds)
                    moved = 4 * math.prod(whole)
                    rows.append(
                        {
                            "shape": whole,
                            "layout": layout,
                            "state": state,
                            "bytes": moved,
                            "seconds": each,
                            "moments_over_sum": each[MOMENTS] / each["sum"],
                            "fused_over_plain": each[FUSED] / each["apply, in place"],
                            "gigabytes_per_second": {
                                "copy": 2e-9 * moved / each["copy"],
                                MOMENTS: 1e-9 * moved / each[MOMENTS],
                                FUSED: 2e-9 * moved / each[FUSED],
                            },
                        }
                    )
    shown = [
        [
            "×".join(map(str, row["shape"])),
            row["layout"],
            row["state"],
            f"{row['moments_over_sum']:.2f}",
            f"{row['fused_over_plain']:.2f}",
            *(f"{value:.1f}" for value in row["gigabytes_per_second"].values()),
        ]
        for row in rows
    ]
    header = ["input", "layout", "", "moments/sum", "fused/plain", "copy GB/s", "moments", "fused"]
    print(table(header, shown))
    judged = []
    for key, text, bound in (
        ("moments_over_sum", "moments over x.sum(), median over inputs", 1.3),
        ("fused_over_plain", "apply + moments over apply, median over inputs", 1.25),
    ):
        for state in ("cold", "warm"):
            values = [row[key] for row in rows if row["state"] == state]
            judged.append(Claim.at_most(f"{text}, {state}", float(np.median(values)), bound))
    write(
        options.output,
        benchmark="kernels.cpu",
        arguments={
            "batches": options.batches,
            "rounds": options.rounds,
            "threads": options.threads,
        },
        environment={**where, "instruction_set": found.kernels.instruction_set},
        results={"rows": rows},
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
