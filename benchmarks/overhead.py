"""What adaptation costs: `python -m benchmarks.overhead`.

Time of a step with a variant over the time of the frozen model's, both in eager mode under
`torch.inference_mode`, commit included; frames come 25 a second, and the default has settled. A
round runs every variant once, each between two frozen
steps (A-B-A), so that a machine that gets slower or faster cancels out. A second copy of the frozen
model takes part like any variant: its ratio is the noise floor.

On CUDA a run of a variant is a burst of steps between two device events, with synchronisation only
around the burst: a host that waited after every step would hide the launches that adaptation adds.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, cycle, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import streamadapt as sa
from benchmarks import models
from benchmarks.record import RESULTS, Claim, environment, paired_ratios, report, table, write

Forward = Callable[[Tensor], Any]
Build = Callable[[nn.Module, int, ExitStack], Forward]
MOMENTUM = 0.03  # of the peers' running statistics; it has no part in what they cost
STREAMS = 8
FRAMES_PER_SECOND = 25
SETTLED_AFTER = 72  # frames of each stream
QUIET = 0.03  # how far the A/A ratio may be from 1


@dataclass(frozen=True)
class Configuration:
    """What is measured: a network on batches of one shape, layout and dtype."""

    model: str
    batch: int
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "float16"]
    image_size: int

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}, {self.layout}, {self.dtype}"


def frozen(model: nn.Module, batch: int, stack: ExitStack) -> Forward:
    """The model as it is."""
    return model


def adapted(
    model: nn.Module, batch: int, stack: ExitStack, *, streams: int = 1, **options: Any
) -> Forward:
    """A `StreamProcessor`, by default as it comes; several cameras are mixed in a batch, or come
    one after the other at batch 1."""
    processor = stack.enter_context(sa.StreamProcessor(model, max_streams=streams, **options))
    cameras = cycle([f"camera-{index}" for index in range(streams)])
    shown = count()

    def forward(frames: Tensor) -> Any:
        stamps = [next(shown) / streams / FRAMES_PER_SECOND for _ in range(batch)]
        return processor(frames, streams=[next(cameras) for _ in range(batch)], pts_seconds=stamps)

    return forward


def train_mode(model: nn.Module, batch: int, stack: ExitStack) -> Forward:
    """BatchNorm layers in training mode: batch statistics, and PyTorch's own running average."""
    for norm in _norms(model):
        norm.train().momentum = MOMENTUM
    return model


def var_mean_hooks(model: nn.Module, batch: int, stack: ExitStack) -> Forward:
    """Hooks as they are written by hand: `torch.var_mean` of each input, two `lerp_`."""

    def hook(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        norm.running_mean.lerp_(mean, MOMENTUM)
        norm.running_var.lerp_(var, MOMENTUM)

    for norm in _norms(model):
        norm.register_forward_pre_hook(hook)
    return model


def update_stats_hooks(model: nn.Module, batch: int, stack: ExitStack) -> Forward:
    """The fastest such hook: the ATen kernel that BatchNorm itself takes its moments with."""

    def hook(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        torch.ops.aten.batch_norm_update_stats(
            inputs[0], norm.running_mean, norm.running_var, MOMENTUM
        )

    for norm in _norms(model):
        norm.register_forward_pre_hook(hook)
    return model


VARIANTS: dict[str, Build] = {
    "frozen again (A/A)": frozen,
    "adapted": adapted,
    "adapted, EMA": partial(adapted, estimator=sa.estimators.EMA()),
    "adapted, synchronous": partial(adapted, timing="synchronous"),
    f"adapted, {STREAMS} streams": partial(adapted, streams=STREAMS),
    "adapted, without kernels": partial(adapted, backend="hooks"),
    "train-mode BN": train_mode,
    "hooks, var_mean": var_mean_hooks,
    "hooks, update_stats": update_stats_hooks,
}
AGAIN = "frozen again (A/A)"
BOUNDS = {"adapted": 1.00, "adapted, without kernels": 1.12}


class Timer:
    """Seconds of each step of a burst, on the CPU by the wall clock, on CUDA by device events."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.burst = 4 if self._cuda else 1

    def __call__(self, forward: Forward, batches: Sequence[Tensor]) -> list[float]:
        """Run one burst."""
        if not self._cuda:
            start = time.perf_counter()
            forward(batches[0])
            return [time.perf_counter() - start]
        torch.cuda.synchronize()
        marks = []
        forward(batches[0])  # not counted: it fills the queue
        for index in range(self.burst + 1):
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
            marks.append(mark)
            if index < self.burst:
                forward(batches[index % len(batches)])
        torch.cuda.synchronize()
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairwise(marks)]


def measure(
    configuration: Configuration, *, device: torch.device, rounds: int, warm_up: int
) -> list[dict[str, Any]]:
    """Every variant in one configuration, interleaved.

    Args:
        configuration: what to measure.
        device: where.
        rounds: how often each variant runs.
        warm_up: steps of each before that.

    Returns:
        A row of plain values for each variant.
    """
    size = configuration.image_size
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, configuration.dtype)
    layout = torch.channels_last if configuration.layout == "NHWC" else torch.contiguous_format
    batches = [
        torch.randn(configuration.batch, 3, size, size, generator=generator)
        .to(device, dtype)
        .contiguous(memory_format=layout)
        for _ in range(4)
    ]
    torch.manual_seed(0)
    base = getattr(models, configuration.model)()
    _settle(base, size)
    base = base.to(device, dtype, memory_format=layout)
    timer = Timer(device)
    reference = copy.deepcopy(base)
    with ExitStack() as stack:
        variants = {
            name: build(copy.deepcopy(base), configuration.batch, stack)
            for name, build in VARIANTS.items()
        }
        stack.enter_context(torch.inference_mode())
        for name, forward in {"": reference, **variants}.items():
            frames = SETTLED_AFTER * (STREAMS if "streams" in name else 1)
            steps = frames // configuration.batch if name.startswith("adapted") else 0
            for index in range(max(warm_up, steps)):
                forward(batches[index % len(batches)])
        gc.collect()
        seconds: dict[str, list[list[float]]] = {name: [] for name in variants}
        before: dict[str, list[float]] = {name: [] for name in variants}
        after: dict[str, list[float]] = {name: [] for name in variants}
        names = list(variants)
        for index in range(rounds):
            # Another order every round: no variant always inherits the same caches.
            shift = index % len(names)
            inputs = batches[index % len(batches) :] + batches[: index % len(batches)]
            last = float(np.mean(timer(reference, inputs)))
            for name in names[shift:] + names[:shift]:
                before[name].append(last)
                seconds[name].append(timer(variants[name], inputs))
                last = float(np.mean(timer(reference, inputs)))
                after[name].append(last)
    return [
        {
            **asdict(configuration),
            "variant": name,
            "ratio": asdict(
                paired_ratios([np.mean(one) for one in seconds[name]], before[name], after[name])
            ),
            "step_seconds": {
                "p50": float(np.quantile(seconds[name], 0.5)),
                "p99": float(np.quantile(seconds[name], 0.99)),
                "steps": int(np.size(seconds[name])),
            },
        }
        for name in names
    ]


def _settle(model: nn.Module, size: int) -> None:
    """Statistics that fit the random weights: activations stay in the range of a trained net's."""
    generator = torch.Generator().manual_seed(1)
    for norm in _norms(model):
        norm.train().momentum = None
    with torch.no_grad():
        model(torch.randn(8, 3, min(size, 128), min(size, 128), generator=generator))
    for norm in _norms(model):
        norm.eval().momentum = 0.1


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def _show(configuration: Configuration, rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{configuration}")
    print(
        table(
            ["variant", "ratio", "p10", "p90", "p50 ms", "p99 ms"],
            [
                [
                    row["variant"],
                    *(f"{row['ratio'][key]:.3f}" for key in ("median", "p10", "p90")),
                    *(f"{1000 * row['step_seconds'][key]:.2f}" for key in ("p50", "p99")),
                ]
                for row in rows
            ],
        ),
        flush=True,
    )


def _claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """The bound is for one layout and batch size each; the noise floor stands beside it."""
    claims = []
    for row in rows:
        bound = BOUNDS.get(row["variant"]) if row["dtype"] == "float32" else None
        if bound is not None:
            floor = next(
                one["ratio"]["median"]
                for one in rows
                if one["variant"] == AGAIN
                and all(one[key] == row[key] for key in ("model", "batch", "layout", "dtype"))
            )
            text = (
                f"{row['model']}, batch {row['batch']}, {row['layout']}: {row['variant']} over "
                f"frozen step time, A/A {floor:.3f}"
            )
            claims.append(Claim.at_most(text, row["ratio"]["median"], bound))
    return claims


def main() -> None:
    """Measures what the arguments say; prints tables and writes the JSON."""
    parser = argparse.ArgumentParser(description="Step time, adapted over frozen.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--output", type=Path, help="JSON file; benchmarks/results/overhead-DEVICE.json"
    )
    parser.add_argument("--models", default="resnet18,resnet50,mobilenet_v2")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--quick", action="store_true", help="small images, few rounds; written only to --output"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True  # the strongest baseline for frames of one size
    where = environment(device)
    print(f"{where['hardware']}, {where['versions']}")
    rounds = min(options.rounds, 5) if options.quick else options.rounds
    rows: list[dict[str, Any]] = []
    for model in options.models.split(","):
        for batch in map(int, options.batches.split(",")):
            for layout in ("NCHW", "NHWC"):
                for dtype in ("float32", "float16") if device.type == "cuda" else ("float32",):
                    configuration = Configuration(
                        model, batch, layout, dtype, 96 if options.quick else 224
                    )
                    measured = measure(
                        configuration, device=device, rounds=rounds, warm_up=max(3, rounds // 10)
                    )
                    _show(configuration, measured)
                    rows += measured
    claims = [] if options.quick else _claims(rows)
    floors = [row["ratio"]["median"] for row in rows if row["variant"] == AGAIN]
    quiet = all(abs(floor - 1) <= QUIET for floor in floors)
    if not quiet:
        print(
            f"\nThe machine was not quiet: A/A {min(floors):.3f} to {max(floors):.3f}, more than "
            f"{QUIET:.0%} from 1. Measure again before using these numbers."
        )
    output: Path | None = options.output
    if output is None and not options.quick:
        output = RESULTS / f"overhead-{options.device}.json"
    if output is not None:
        write(
            output,
            benchmark="overhead",
            arguments={**vars(options), "rounds": rounds},
            environment=where,
            results={
                "rows": rows,
                "quiet": quiet,
                "mode": "eager, inference_mode",
                "cudnn_benchmark": True,
            },
            claims=claims,
        )
    report(claims, written=output)


if __name__ == "__main__":
    main()
