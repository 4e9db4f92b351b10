"""What a duty cycle costs beside the fastest frozen model: `python -m benchmarks.duty`.

A frozen model is deployed by Inductor's freezing or ONNX Runtime, whichever is faster here: that is
the reference, and found out first. A processor adapts every k-th batch; those in between are
answered by the same engine as the reference, or by `onednn`. It is on the model as it was, in
channels-last layout, and once on the folded one.
A run of a variant is a whole cycle of k batches, between two runs of as many frozen ones (A-B-A);
its ratio is the mean of the cycle over theirs. The reference takes part once more: the noise floor.
Frames come 25 a second; `resting` streams are of the source's world, `following` ones of another,
in which statistics go into weights and engines are built anew. p50 and p99 are of single batches.
Threads sleep soon after a run, ONNX Runtime's at once and PyTorch's after a tenth of a millisecond
(`GOMP_SPINCOUNT`): where two engines take turns, spinning threads of one slow the other down.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when PyTorch is loaded

import argparse
import copy
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import streamadapt as sa
from benchmarks import models
from benchmarks.overhead.adapting import FRAMES_PER_SECOND
from benchmarks.overhead.configurations import fit_statistics
from benchmarks.overhead.parts import QUIET
from benchmarks.record import RESULTS, Claim, environment, paired_ratios, report, table, write

Forward = Callable[[Tensor], Any]
BOUND = 1.05
LONGEST_SETTLING_SECONDS = 16.0
AGAIN = "frozen again (A/A)"
PAUSE_SECONDS = 0.01  # threads of the run before go to sleep
ENGINES: dict[str, Callable[[Tensor], sa.between.Builder]] = {
    "Inductor, frozen": sa.between.inductor_frozen,
    "ONNX Runtime": sa.between.onnxruntime_session,
    "onednn": sa.between.onednn,
}
REFERENCES = ("Inductor, frozen", "ONNX Runtime")


def race(candidates: dict[str, Forward], batches: Sequence[Tensor], rounds: int) -> dict[str, Any]:
    """Frozen models in turn; the median seconds of each batch."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(rounds):
        for name, forward in candidates.items():
            time.sleep(PAUSE_SECONDS)
            forward(batches[index % len(batches)])
            seconds[name] += run(forward, batches, 3)
    return {name: float(np.median(one)) for name, one in seconds.items()}


def run(forward: Forward, batches: Sequence[Tensor], steps: int) -> list[float]:
    """Seconds of each of some batches."""
    found = []
    for step in range(steps):
        start = time.perf_counter()
        forward(batches[step % len(batches)])
        found.append(time.perf_counter() - start)
    return found


class Stream:
    """A processor with a stream of its own, settled and with its engine built."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Tensor],
        *,
        every: int,
        between: sa.between.Builder | None,
        phase: str,
        stack: ExitStack,
    ) -> None:
        size = len(batches[0])
        with torch.inference_mode(False):  # as a model is that was loaded
            model = copy.deepcopy(model)
        self.processor = stack.enter_context(
            sa.StreamProcessor(
                model,
                adapt_every=every,
                between=between,
                estimator=sa.estimators.Restarting(),
            )
        )
        self._every, self._shown = every, count()
        if phase == "following":
            batches = [0.4 * one + 1.0 for one in batches]
        self.batches, self._size = batches, size
        for step in range(int(LONGEST_SETTLING_SECONDS * FRAMES_PER_SECOND / size)):
            self(batches[step % len(batches)])
            if step * size > 80 and self.processor.phase() == phase:
                break
        self.phase = self.processor.phase()
        for step in range(2 * every):
            self(batches[step % len(batches)])
        self.processor.flush()

    def __call__(self, frames: Tensor) -> Any:
        stamps = [next(self._shown) / FRAMES_PER_SECOND for _ in range(self._size)]
        return self.processor(frames, pts_seconds=stamps)


def measure(
    name: str, batch: int, *, every: int, rounds: int, size: int, engines: Sequence[str]
) -> dict[str, Any]:
    """One network and size of batch; plain values."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(batch, 3, size, size, generator=generator) for _ in range(4)]
    torch.manual_seed(0)
    model = getattr(models, name)()
    fit_statistics(model, size)
    folded = sa.fold(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        frozen: dict[str, Forward] = {"eager": model, "eager, folded": folded}
        builds: dict[str, float] = {}
        for engine in engines:
            start = time.perf_counter()
            with torch.inference_mode(False):
                frozen[engine] = ENGINES[engine](batches[0]).build(copy.deepcopy(folded))
            builds[engine] = time.perf_counter() - start
        raced = race(frozen, batches, max(rounds // 2, 3))
        reference = min((one for one in REFERENCES if one in raced), key=raced.__getitem__)
        variants: dict[str, Any] = {AGAIN: frozen[reference]}
        plain = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        between = {one: ENGINES[one](batches[0]) for one in dict.fromkeys((reference, "onednn"))}
        for told, builder in between.items():
            # A compiler at work in the background would be most of what is measured.
            for phase in ("resting",) if told.startswith("Inductor") else ("resting", "following"):
                variants[f"1 in {every}, {phase}, in between {told}"] = Stream(
                    plain, batches, every=every, between=builder, phase=phase, stack=stack
                )
        variants[f"1 in {every}, resting, in between {reference}, folded"] = Stream(
            folded, batches, every=every, between=between[reference], phase="resting", stack=stack
        )
        variants["every batch, resting"] = Stream(
            plain, batches, every=1, between=None, phase="resting", stack=stack
        )
        gc.collect()
        times: dict[str, list[list[float]]] = {one: [] for one in variants}
        before: dict[str, list[float]] = {one: [] for one in variants}
        after: dict[str, list[float]] = {one: [] for one in variants}
        names = list(variants)

        def cycle(forward: Any) -> list[float]:
            time.sleep(PAUSE_SECONDS)
            return run(forward, getattr(forward, "batches", batches), every)

        for index in range(rounds):
            shift = index % len(names)
            last = float(np.mean(cycle(frozen[reference])))
            for one in names[shift:] + names[:shift]:
                before[one].append(last)
                times[one].append(cycle(variants[one]))
                last = float(np.mean(cycle(frozen[reference])))
                after[one].append(last)
        rows = []
        for one in names:
            ratio = paired_ratios([np.mean(cell) for cell in times[one]], before[one], after[one])
            every_batch = np.concatenate(times[one])
            # A cycle may begin anywhere in the processor's own; sorted, the slowest adapted.
            slowest = np.median([max(cell) for cell in times[one]])
            rows.append(
                {
                    "model": name,
                    "batch": batch,
                    "variant": one,
                    "reference": reference,
                    "phase": getattr(variants[one], "phase", None),
                    "engines_built": (
                        variants[one].processor.event_counts.get("EngineBuilt", 0)
                        if isinstance(variants[one], Stream)
                        else None
                    ),
                    "ratio": vars(ratio),
                    "slowest_of_cycle": float(slowest / np.median(before[one])),
                    "step_seconds": {
                        "p50": float(np.quantile(every_batch, 0.5)),
                        "p99": float(np.quantile(every_batch, 0.99)),
                        "steps": len(every_batch),
                    },
                }
            )
    return {"rows": rows, "frozen_seconds": raced, "build_seconds": builds}


def _show(name: str, batch: int, found: dict[str, Any]) -> None:
    fastest = found["rows"][0]["reference"]
    raced = found["frozen_seconds"]
    print(f"\n{name}, batch {batch}; frozen, over {fastest}: ", end="")
    print(", ".join(f"{one} {seconds / raced[fastest]:.3f}" for one, seconds in raced.items()))
    print(
        table(
            ["variant", "ratio", "p10", "p90", "slowest", "p50 ms", "p99 ms"],
            [
                [
                    row["variant"],
                    *(f"{row['ratio'][key]:.3f}" for key in ("median", "p10", "p90")),
                    f"{row['slowest_of_cycle']:.2f}",
                    *(f"{1000 * row['step_seconds'][key]:.2f}" for key in ("p50", "p99")),
                ]
                for row in found["rows"]
            ],
        ),
        flush=True,
    )


def _claims(rows: Sequence[dict[str, Any]], every: int) -> list[Claim]:
    claims = []
    for row in rows:
        if row["variant"] != f"1 in {every}, resting, in between {row['reference']}":
            continue
        floor = next(
            one["ratio"]["median"]
            for one in rows
            if one["variant"] == AGAIN and all(one[k] == row[k] for k in ("model", "batch"))
        )
        text = (
            f"{row['model']}, batch {row['batch']}: {row['variant']}, over frozen "
            f"{row['reference']}, A/A {floor:.3f}"
        )
        claims.append(Claim.at_most(text, row["ratio"]["median"], BOUND))
    return claims


def main() -> None:
    """Measures what the arguments say; prints tables and writes the JSON."""
    parser = argparse.ArgumentParser(description="Step time of a duty cycle over frozen engines.")
    parser.add_argument("--output", type=Path, help="JSON file; benchmarks/results/duty.json")
    parser.add_argument("--models", default="resnet18,resnet50,mobilenet_v2")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--engines", default=",".join(ENGINES).replace(", ", "; "))
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small images, few rounds, no Inductor; written only to --output",
    )
    options = parser.parse_args()
    engines = [one.replace("; ", ", ") for one in options.engines.split(",")]
    if options.quick:
        engines = [one for one in engines if not one.startswith("Inductor")]
    where = environment()
    print(f"{where['hardware']}, {where['versions']}")
    rounds = min(options.rounds, 4) if options.quick else options.rounds
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for model in options.models.split(","):
        for batch in map(int, options.batches.split(",")):
            measured = measure(
                model,
                batch,
                every=options.every,
                rounds=rounds,
                size=96 if options.quick else 224,
                engines=engines,
            )
            _show(model, batch, measured)
            rows += measured["rows"]
            found[f"{model}, batch {batch}"] = {
                key: measured[key] for key in ("frozen_seconds", "build_seconds")
            }
    floors = [row["ratio"]["median"] for row in rows if row["variant"] == AGAIN]
    quiet = all(abs(floor - 1) <= QUIET for floor in floors)
    if not quiet:
        print(f"\nThe machine was not quiet: A/A {min(floors):.3f} to {max(floors):.3f}.")
    claims = [] if options.quick else _claims(rows, options.every)
    output: Path | None = options.output
    if output is None and not options.quick:
        output = RESULTS / "duty.json"
    if output is not None:
        write(
            output,
            benchmark="duty",
            arguments={
                **vars(options),
                "rounds": rounds,
                "GOMP_SPINCOUNT": os.environ["GOMP_SPINCOUNT"],
            },
            environment=where,
            results={"rows": rows, "frozen": found, "quiet": quiet},
            claims=claims,
        )
    report(claims, written=output)


if __name__ == "__main__":
    main()
