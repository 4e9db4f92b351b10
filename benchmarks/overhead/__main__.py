"""What adaptation costs: `python -m benchmarks.overhead`.

Time of a step with a variant over the time of the frozen model's in eager mode, both under
`torch.inference_mode`, commit included; frames come 25 a second, and the default has settled. A
round runs every variant once, each between two frozen steps (A-B-A), so that a machine that gets
slower or faster cancels out. A second copy of the frozen model takes part like any variant: its
ratio is the noise floor.

On the CPU every variant has a process of its own, as it has where it is deployed; `--together` puts
them all into one, as it is on CUDA. `--malloc` says whether the processes keep memory that was
freed (the stronger baseline, and the default here) or are as glibc makes them.

Among the variants are the strongest ways of deploying the network frozen: BatchNorm folded, and a
compiler or another runtime. Every variant is compared with the fastest of them as well.

On CUDA a run of a variant is a burst of steps between two device events, with synchronisation only
around the burst: a host that waited after every step would hide the launches that adaptation adds.

Long runs can be made in parts: `--append` adds to what the JSON has, on the same machine and
commit, and replaces the configurations that are measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.overhead import memory, parts, tables
from benchmarks.overhead.apart import MALLOC, Apart
from benchmarks.overhead.configurations import Configuration
from benchmarks.overhead.timing import Budget, Together, measure
from benchmarks.overhead.variants import AGAIN, TUNED, variants
from benchmarks.record import RESULTS, environment, report, write

SIZE, QUICK_SIZE = 224, 96
QUICK_ROUNDS = 5
DEFAULTS: dict[str, dict[str, str]] = {
    "cpu": {
        "models": "resnet18,resnet50,mobilenet_v2,unet",
        "batches": "1,8",
        "layouts": "NCHW,NHWC",
        "dtypes": "float32",
        "rounds": "20",
    },
    # What matters most first, because time may be limited; but at batch 32 something is built that
    # may use up what is left.
    "cuda": {
        "models": "resnet50,resnet18,unet,mobilenet_v2",
        "batches": "64,8,1,32",
        "layouts": "NHWC",
        "dtypes": "float16",
        "rounds": "12",  # device time scatters less
    },
}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description="Step time, adapted over frozen."
    )
    add = parser.add_argument
    add("--device", choices=list(DEFAULTS), default="cpu")
    add("--output", type=Path, help="JSON file; by default one in benchmarks/results")
    add("--append", action="store_true", help="keep what the JSON has of other configurations")
    add("--models", help="names of factories in benchmarks.models, with commas")
    add("--batches", help="batch sizes, with commas")
    add("--layouts", help="NCHW, NHWC, or both with a comma")
    add("--dtypes", help="float32, float16, or both with a comma")
    add("--variants", help="names in full, with semicolons; all by default")
    add("--rounds", help="how often each variant runs")
    add("--minutes", type=float, help="stop when they are used up, and say what was left out")
    add(
        "--autotune-batches",
        default="32",
        help="batch sizes at which max-autotune is built, which takes minutes; with commas, or all",
    )
    add("--together", action="store_true", help="all variants in one process, also on the CPU")
    add("--malloc", choices=MALLOC, default="kept", help="what processes do with memory")
    add("--memory", choices=["yes", "no", "only"], default="yes", help="measure peak memory")
    add(
        "--quick",
        action="store_true",
        help="small images, few rounds, no memory; written only to --output",
    )
    options = parser.parse_args(given)
    for name, value in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.rounds = int(options.rounds)
    options.together |= options.device == "cuda"
    if options.quick:
        options.rounds = min(options.rounds, QUICK_ROUNDS)
    known = variants(torch.device(options.device))
    chosen = list(known) if options.variants is None else options.variants.split(";")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"no variant {unknown[0]!r}. There are: {'; '.join(known)}")
    # The noise floor is always there: nothing can be told without it.
    options.chosen = {name: one for name, one in known.items() if name in chosen or name == AGAIN}
    if options.output is None and not options.quick:
        short = {"cpu": "cpu", "cuda": "gpu"}[options.device]
        malloc = "-default-malloc" if short == "cpu" and options.malloc == "default" else ""
        options.output = RESULTS / f"overhead-{short}{malloc}.json"
    return options


def configurations(options: argparse.Namespace, model: str) -> Iterator[Configuration]:
    """Those of a network, in the order in which they are measured."""
    size = QUICK_SIZE if options.quick else SIZE
    for batch in map(int, options.batches.split(",")):
        for layout in options.layouts.split(","):
            for dtype in options.dtypes.split(","):
                yield Configuration(model, batch, layout, dtype, size)


class Run:
    """Everything measured so far, and written.

    Args:
        options: what to measure.
        where: what `environment` returned.
    """

    def __init__(self, options: argparse.Namespace, where: dict[str, Any]) -> None:
        self._options = options
        self._where = where
        old: dict[str, Any] = {}
        if options.append and options.output is not None:
            old = parts.earlier(options.output, where)
        self.rows: list[dict[str, Any]] = old.get("rows", [])
        self._memory: list[dict[str, Any]] = old.get("memory", [])
        self._left_out: list[str] = old.get("left_out", [])
        self.failed: list[str] = []

    def add(self, configuration: Configuration, rows: list[dict[str, Any]]) -> None:
        """Rows of a configuration."""
        print(f"\n{configuration}\n{tables.printed(rows)}", flush=True)
        self.rows = parts.merged(self.rows, rows)
        self._left_out = [one for one in self._left_out if one != str(configuration)]
        self.failed += [f"{configuration}: {row['variant']}" for row in rows if row.get("failed")]
        self.write()

    def add_memory(self, rows: list[dict[str, Any]]) -> None:
        """Peak memory of a configuration."""
        print(f"\n{tables.printed_memory(rows)}", flush=True)
        self._memory = parts.merged(self._memory, rows)
        done = {f"peak memory of {row['model']}" for row in rows}
        self._left_out = [one for one in self._left_out if one not in done]
        self.failed += [f"peak memory: {row['variant']}" for row in rows if row.get("failed")]
        self.write()

    def leave_out(self, name: str) -> None:
        """Something there is no time for."""
        print(f"\nleft out, no time: {name}", flush=True)
        if name not in self._left_out:
            self._left_out.append(name)

    def claims(self) -> list[Any]:
        """What the rows show; nothing where images are small."""
        if self._options.quick:
            return []
        return parts.claims(self.rows, cuda=self._options.device == "cuda")

    def write(self) -> None:
        """The JSON, also of a run that is not at its end: what was measured is not lost."""
        options = self._options
        if options.output is None:
            return
        kept = {name: value for name, value in vars(options).items() if name != "chosen"}
        write(
            options.output,
            benchmark="overhead",
            arguments=kept,
            environment=self._where,
            results={
                "rows": self.rows,
                "memory": self._memory,
                "left_out": self._left_out,
                "quiet": parts.is_quiet(self.rows),
                "mode": "reference: eager, inference_mode",
                "cudnn_benchmark": True,
            },
            claims=self.claims(),
        )


def _measure_times(run: Run, model: str, options: argparse.Namespace, budget: Budget) -> None:
    place = Together(torch.device(options.device)) if options.together else Apart(options.malloc)
    tuned = options.autotune_batches
    for configuration in configurations(options, model):
        if budget.spent():
            run.leave_out(str(configuration))
            continue
        left_out = {}
        if tuned != "all" and str(configuration.batch) not in tuned.split(","):
            left_out[TUNED] = f"built at batch {tuned} only; see --autotune-batches"
        rows = measure(
            configuration,
            options.chosen,
            place=place,
            rounds=options.rounds,
            budget=budget,
            left_out=left_out,
        )
        run.add(configuration, rows)


def _measure_memory(run: Run, model: str, options: argparse.Namespace, budget: Budget) -> None:
    if budget.spent():
        run.leave_out(f"peak memory of {model}")
        return
    device = torch.device(options.device)
    first = next(configurations(options, model))
    configuration = replace(first, batch=memory.BATCH)
    run.add_memory(memory.measure(configuration, memory.compared(device), device=device))


def main() -> int:
    """Measures what the arguments say; prints tables and writes the JSON.

    Returns:
        0; 1 where something failed that ought to work; 2 where the device is not there or
        `--append` does not fit.
    """
    options = arguments()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device. Measure the CPU with --device cpu.", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True  # the strongest baseline for frames of one size
    where = environment(device)
    print(f"{where['hardware']}, {where['versions']}")
    try:
        run = Run(options, where)
    except parts.ForeignPartError as error:
        print(error, file=sys.stderr)
        return 2
    budget = Budget(options.minutes)
    for model in options.models.split(","):
        # Before the times, which may use up what is left of the budget.
        if options.memory == "only" or (options.memory == "yes" and not options.quick):
            _measure_memory(run, model, options, budget)
        if options.memory != "only":
            _measure_times(run, model, options, budget)
    run.write()
    floors = parts.noise(run.rows)
    if not parts.is_quiet(run.rows):
        print(
            f"\nThe machine was not quiet: A/A {min(floors):.3f} to {max(floors):.3f}, more than "
            f"{parts.QUIET:.0%} from 1. Measure again before using these numbers."
        )
    report(run.claims(), written=options.output)
    for name in run.failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
