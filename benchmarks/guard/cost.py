"""What watching and guarding cost: `python -m benchmarks.guard.cost`.

ResNet-50, batches of 8, 224×224: the step of a processor that watches for drift, or has a guard and
a memory of domains as well, over that of one with neither just before and after it, resting and
following, settling passes left out, of one stream and of eight. Comparisons are left out: they are
a forward each, of a known share of the frames.
"""

from __future__ import annotations

import argparse
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

PLAIN: dict[str, Any] = {"alarms": None}
WATCHED: dict[str, Any] = {"alarms": Alarms()}
GUARDED: dict[str, Any] = {"alarms": Alarms(), "guard": Guard(share=0.0), "domains": 4}
CANDIDATES = {"nothing (A/A)": PLAIN, "drift is watched": WATCHED, "with guard, domains": GUARDED}


def measure(
    model: nn.Module, candidate: dict[str, Any], *, gain: float, pairs: int, streams: int
) -> dict[str, Any]:
    """Ratios of the candidate's step to the plain one's."""
    estimator = Restarting(material=0.0 if gain != 1.0 else None)
    reference, other = (
        Stepper(model, estimator, streams=streams, **one) for one in (PLAIN, candidate)
    )
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        for number in range(pairs + WARM_UP):
            batch = frames(number, gain=gain)
            for one, times in zip((reference, other), seconds, strict=True):
                times.append(one(batch))
    before, ours = (np.array(times[WARM_UP:]) for times in seconds)
    ratios = paired_ratios(ours[:-1], before[:-1], before[1:])
    return {
        "phase": other.phase(),
        "median": ratios.median,
        "p10": ratios.p10,
        "p90": ratios.p90,
        "mean": float(ours.sum() / before.sum()),
        "p99": float(np.quantile(ours, 0.99) / np.quantile(before, 0.99)),
    }


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="Cost of watching and guarding.")
    parser.add_argument("--pairs", type=int, default=100)
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
            judged.append(Claim.at_most(f"{name}: step, median", row["median"], 1.02))
            judged.append(Claim.at_most(f"{name}: step, p99", row["p99"], 1.10))
    write(
        options.output,
        benchmark="guard.cost",
        arguments={"batch": BATCH, "side": SIDE, "pairs": options.pairs},
        environment=where,
        results=found,
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
