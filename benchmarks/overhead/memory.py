"""Peak memory of a step: `python -m benchmarks.overhead.memory MODEL VARIANT`.

On the CPU what a process needed at most, beyond what it had before the variant was built: each
variant in a process of its own, because memory that was freed is not given back. On CUDA what
PyTorch's allocator held at most. Settling, which runs the model again, is part of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.overhead.baselines import eager, warm
from benchmarks.overhead.configurations import (
    Configuration,
    NotAvailableError,
    reason,
    set_up,
)
from benchmarks.overhead.timing import REFERENCE
from benchmarks.overhead.variants import ADAPTED, GRAPH, WITHOUT_KERNELS, variants

ROOT = Path(__file__).resolve().parents[2]
BATCH = 8


def compared(device: torch.device) -> list[str]:
    """Variants whose memory is measured."""
    if device.type == "cuda":
        return [REFERENCE, "frozen, folded, CUDA graph", ADAPTED, GRAPH]
    return [REFERENCE, ADAPTED, WITHOUT_KERNELS, "Tent step"]


def measure(
    configuration: Configuration, names: Sequence[str], *, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each of some variants: peak bytes, and the same over the frozen model's."""
    rows: list[dict[str, Any]] = []
    for name in names:
        row: dict[str, Any] = {**asdict(configuration), "variant": name}
        try:
            if device.type == "cuda":
                row["peak_bytes"] = peak_bytes(configuration, name, device=device)
            else:
                row["peak_bytes"] = _in_a_process(configuration, name)
        except Exception as error:
            row |= reason(error)
        rows.append(row)
    frozen = rows[0].get("peak_bytes") if rows and rows[0]["variant"] == REFERENCE else None
    for row in rows:
        if frozen and "peak_bytes" in row:
            row["over_frozen"] = row["peak_bytes"] / frozen
    return rows


def peak_bytes(configuration: Configuration, name: str, *, device: torch.device) -> int:
    """Builds and runs a variant; what that took at most, the network itself included.

    On the CPU to be called once in a process.
    """
    with ExitStack() as stack:
        gc.collect()
        before = _held(device, reset=True)
        base, setting = set_up(configuration, device, stack)
        with torch.inference_mode():
            build = eager if name == REFERENCE else variants(device)[name].build
            forward = build(base, setting)
            for _ in range(2):
                warm(forward, setting)
        return _held(device) - before


def _held(device: torch.device, *, reset: bool = False) -> int:
    """Bytes in use now with `reset`, else what was in use at most since."""
    if device.type == "cuda":
        if reset:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            return torch.cuda.memory_allocated(device)
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        raise NotAvailableError("no /proc to read a process's peak memory from")
    # Not `ru_maxrss`: on Linux a process starts with its parent's.
    field = "VmRSS:" if reset else "VmHWM:"
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _in_a_process(configuration: Configuration, name: str) -> int:
    command = [sys.executable, "-m", "benchmarks.overhead.memory", configuration.model, name]
    for option, value in (
        ("--batch", configuration.batch),
        ("--layout", configuration.layout),
        ("--image-size", configuration.image_size),
        ("--threads", torch.get_num_threads()),
    ):
        command += [option, str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        (*_, last) = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"its process ended with status {done.returncode}: {last}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def main() -> None:
    """Print one variant's peak as JSON."""
    parser = argparse.ArgumentParser(description="Peak memory of one variant on the CPU.")
    parser.add_argument("model")
    parser.add_argument("variant")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--layout", choices=["NCHW", "NHWC"], default="NCHW")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    configuration = Configuration(
        options.model, options.batch, options.layout, "float32", options.image_size
    )
    found = peak_bytes(configuration, options.variant, device=torch.device("cpu"))
    print(json.dumps({"peak_bytes": found}))


if __name__ == "__main__":
    main()
