"""What watching and guarding cost: `python -m benchmarks.guard.cost`.

ResNet-50, batches of 8, 224×224: the step of a processor that watches for drift, or has a guard and
a memory of domains as well, over that of one with neither just before and after it, resting and
following, of one stream and of eight. Steps that compare answers with the source's, or settle, run
the model again and have figures of their own: as a matter of routine the guard compares a known
share of the frames, from which the mean of all steps follows.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.adaptation.cost import BATCH, SIDE, WARM_UP, Stepper, frames
from benchmarks.models import resnet50
from benchmarks.record import (
    RESULTS,
    Claim,
    environment,
    paired_ratios,
    report,
    table,
    write,
)
from streamadapt import Guard, adabn
from streamadapt.drift import Alarms
from streamadapt.estimators import Restarting
from streamadapt.events import AnswersCompared, Event, SettlingPassed

PLAIN: dict[str, Any] = {"alarms": None}
WATCHED: dict[str, Any] = {"alarms": Alarms()}
GUARDED: dict[str, Any] = {"alarms": Alarms(), "guard": Guard(), "domains": 4}
CANDIDATES = {"nothing (A/A)": PLAIN, "drift is watched": WATCHED, "with guard, domains": GUARDED}


class Again:
    """Steps that ran the model again, of one processor."""

    def __init__(self) -> None:
        self.compared: set[int] = set()
        self.settled: set[int] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, AnswersCompared):
            self.compared.add(event.step)
        elif isinstance(event, SettlingPassed):
            self.settled.add(event.step)


def measure(
    model: nn.Module, candidate: dict[str, Any], *, gain: float, pairs: int, streams: int
) -> dict[str, Any]:
    """Ratios of the candidate's step to the plain one's."""
    estimator = Restarting(material=0.0 if gain != 1.0 else None)
    again = Again(), Again()
    reference, other = (
        Stepper(model, estimator, streams=streams, on_event=noted, **one)
        for noted, one in zip(again, (PLAIN, candidate), strict=True)
    )
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        for number in range(pairs + WARM_UP):
            batch = frames(number, gain=gain)
            for one, times in zip((reference, other), seconds, strict=True):
                times.append(one(batch))
    steps = np.arange(WARM_UP, pairs + WARM_UP - 1)  # each has one after it
    ours, before = np.array(seconds[1]), np.array(seconds[0])
    settled = np.array([step in again[0].settled | again[1].settled for step in steps])
    settled |= np.array([step + 1 in again[0].settled for step in steps])
    compared = np.array([step in again[1].compared for step in steps])
    alone = steps[~settled & ~compared]
    ratios = paired_ratios(ours[alone], before[alone], before[alone + 1])
    found = {
        "phase": other.phase(),
        **asdict(ratios),
        "mean": float(ours[alone].sum() / before[alone].sum()),
        "p99": float(np.quantile(ours[alone], 0.99) / np.quantile(before[alone], 0.99)),
    }
    both = steps[~settled & compared]
    if len(both):
        found["comparing"] = asdict(paired_ratios(ours[both], before[both], before[both + 1]))
        routine = GUARDED["guard"].share * (found["comparing"]["median"] - found["median"])
        found["mean_with_routine"] = found["mean"] + routine
    return found


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="Cost of watching and guarding.")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=RESULTS / "guard-cost.json")
    options = parser.parse_args()
    where = environment()
    with torch.no_grad():
        model = adabn(resnet50(), [frames(1000 + k, gain=1.0) for k in range(8)])
    found = {}
    for phase, gain, streams in (
        ("resting", 1.0, 1),
        ("following", 0.5, 1),
        ("resting, eight streams", 1.0, 8),
    ):
        for name, candidate in CANDIDATES.items():
            key = f"{name}, {phase}"
            found[key] = measure(model, candidate, gain=gain, pairs=options.pairs, streams=streams)
            print(key, found[key], flush=True)
    rows = [
        [name, str(row["phase"]), *(f"{row[key]:.3f}" for key in ("median", "mean", "p99"))]
        for name, row in found.items()
    ]
    print(table(["added", "phase at the end", "median", "mean", "p99"], rows))
    judged = []
    for name, row in found.items():
        if "guard" in name:
            mean = row.get("mean_with_routine", row["mean"])
            judged.append(Claim.at_most(f"{name}: step, mean", mean, 1.02))
            judged.append(Claim.at_most(f"{name}: step, p99", row["p99"], 1.10))
    write(
        options.output,
        benchmark="guard.cost",
        arguments={
            "batch": BATCH,
            "side": SIDE,
            "pairs": options.pairs,
            "share": GUARDED["guard"].share,
        },
        environment=where,
        results=found,
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
