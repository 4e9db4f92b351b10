"""Does anything grow or slow down? `python -m benchmarks.soak`: 100,000 steps of a tiny network.

Twice: one stream, and four streams mixed in every batch. Resident memory is read a thousand times;
its slope is a least-squares line through the readings after the warm-up, as growth over the run.
Step times are medians of the first and of the last tenth. A frozen twin of the network runs every
eighth step between them, so that a machine that changed its pace in the meantime is seen.

Exits with 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import streamadapt as sa
from benchmarks.record import RESULTS, Claim, environment, report, table, write

GROWTH_BYTES = 1_000_000
SLOWDOWN = 1.05
WARM_UP = 0.1  # of the run; allocator pools and caches fill up in it
BATCH = 4
_READINGS = 1000
_TWIN_EVERY = 8


@dataclass(frozen=True)
class Soak:
    """What a run showed.

    Attributes:
        streams: rows of statistics.
        steps: length of the run.
        growth_bytes: slope of the resident memory after the warm-up, times the steps it spans.
        resident_bytes: at the end.
        first_decile_seconds: median step time of the first tenth.
        last_decile_seconds: of the last.
        twin_slowdown: the same quotient of the frozen twin.
        events: how many of each class.
    """

    streams: int
    steps: int
    growth_bytes: float
    resident_bytes: int
    first_decile_seconds: float
    last_decile_seconds: float
    twin_slowdown: float
    events: dict[str, int]

    @property
    def slowdown(self) -> float:
        """Last over first decile."""
        return self.last_decile_seconds / self.first_decile_seconds

    def claims(self) -> list[Claim]:
        """The bounds of a full run."""
        what = f"{self.steps} steps, {self.streams} stream{'s' if self.streams > 1 else ''}"
        pace = f"step time, last over first decile (frozen twin {self.twin_slowdown:.3f})"
        return [
            Claim.at_most(f"{what}: growth of resident bytes", self.growth_bytes, GROWTH_BYTES),
            Claim.at_most(f"{what}: {pace}", self.slowdown, SLOWDOWN),
        ]


_ALARMS = sa.drift.Alarms()


def tiny_model() -> nn.Module:
    """Two convolutions with BatchNorm for `[N, 3, 16, 16]`, in evaluation mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()


def soak(steps: int, *, streams: int, alarms: sa.drift.Alarms | None = _ALARMS) -> Soak:
    """Run `steps` steps of a processor with as many rows as `streams`.

    Args:
        steps: at least 100.
        streams: rows; each batch then has a frame of each of four cameras, in changing order.
        alarms: of the processor. Finding a detector's threshold takes some megabytes, once.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(BATCH, 3, 16, 16, generator=generator) + i / 4 for i in range(7)]
    orders = [[f"camera-{(i + k) % streams}" for i in range(BATCH)] for k in range(streams)]
    model = tiny_model()
    twin = copy.deepcopy(model)
    every = max(1, steps // _READINGS)
    # Filled, so that no page is touched for the first time during the run.
    seconds, twin_seconds = np.full(steps, np.nan), np.full(steps, np.nan)
    resident = np.full(-(-steps // every), np.nan)
    events: Counter[str] = Counter()

    def count(event: object) -> None:
        events[type(event).__name__] += 1

    gc.collect()
    with (
        torch.inference_mode(),
        sa.StreamProcessor(model, max_streams=streams, on_event=count, alarms=alarms) as processor,
    ):
        for step in range(steps):
            frames = batches[step % len(batches)]
            ids = orders[step % streams] if streams > 1 else None
            start = time.perf_counter()
            processor(frames, streams=ids)
            seconds[step] = time.perf_counter() - start
            if step % _TWIN_EVERY == 0:
                start = time.perf_counter()
                twin(frames)
                twin_seconds[step] = time.perf_counter() - start
            if step % every == 0:
                resident[step // every] = resident_bytes()
    first, last = _outer_tenths(seconds)
    twin_first, twin_last = _outer_tenths(twin_seconds)
    return Soak(
        streams=streams,
        steps=steps,
        growth_bytes=_growth(resident),
        resident_bytes=resident_bytes(),
        first_decile_seconds=first,
        last_decile_seconds=last,
        twin_slowdown=twin_last / twin_first,
        events=dict(events),
    )


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _growth(readings: NDArray[np.float64]) -> float:
    """Rise of a least-squares line through the readings after the warm-up."""
    kept = readings[int(WARM_UP * len(readings)) :]
    slope = np.polyfit(np.arange(len(kept)), kept, deg=1)[0]
    return float(slope * (len(kept) - 1))


def _outer_tenths(seconds: NDArray[np.float64]) -> tuple[float, float]:
    tenth = max(1, len(seconds) // 10)
    return float(np.nanmedian(seconds[:tenth])), float(np.nanmedian(seconds[-tenth:]))


def _show(runs: list[Soak]) -> None:
    rows = [
        [
            f"{run.streams}",
            f"{run.steps}",
            f"{run.growth_bytes / 1e3:.0f}",
            f"{run.resident_bytes / 1e6:.0f}",
            f"{1e6 * run.first_decile_seconds:.0f}",
            f"{1e6 * run.last_decile_seconds:.0f}",
            f"{run.slowdown:.3f}",
            f"{run.twin_slowdown:.3f}",
        ]
        for run in runs
    ]
    header = ["streams", "steps", "growth kB", "RSS MB", "first µs", "last µs", "ratio", "twin"]
    print(table(header, rows))


def main() -> int:
    """Runs both, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description="Memory and pace over many steps.")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args()
    if options.steps < 100:
        parser.error(f"--steps must be at least 100, got {options.steps}")
    torch.set_num_threads(1)  # tensors this small are not worth a second thread
    where = environment()
    runs: list[Soak] = []
    results: list[dict[str, Any]] = []
    for streams in (1, 4):
        runs.append(soak(options.steps, streams=streams))
        results.append({**asdict(runs[-1]), "slowdown": runs[-1].slowdown})
    _show(runs)
    claims = [claim for run in runs for claim in run.claims()]
    write(
        options.output,
        benchmark="soak",
        arguments=vars(options),
        environment=where,
        results={"runs": results, "batch": BATCH, "warm_up": WARM_UP},
        claims=claims,
    )
    report(claims, written=options.output)
    return 0 if all(claim.holds for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
