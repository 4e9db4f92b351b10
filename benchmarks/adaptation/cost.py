"""What the default's update costs beyond a plain EMA's: `python -m benchmarks.adaptation.cost`.

ResNet-50, batches of 8, 224×224: the step of a processor with the default estimator over that of
one with an EMA just before and after it, resting and following, settling passes left out; with
PyTorch's kernels, because an EMA's commit has no others. A second EMA in the default's place is the
noise floor.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import resnet50
from benchmarks.record import (
    RESULTS,
    Claim,
    Ratios,
    environment,
    paired_ratios,
    report,
    table,
    write,
)
from streamadapt import StreamProcessor, adabn
from streamadapt.estimators import EMA, Estimator, Restarting

BATCH, SIDE, WARM_UP = 8, 224, 12


def frames(seed: int, *, gain: float) -> Tensor:
    """Smooth random pictures."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(BATCH, 3, SIDE // 8, SIDE // 8, generator=generator)
    return gain * nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")


class Stepper:
    """A processor that is shown batches at 25 frames a second, of one stream or of several."""

    def __init__(
        self, model: nn.Module, estimator: Estimator, *, streams: int = 1, **arguments: Any
    ) -> None:
        self.processor = StreamProcessor(
            copy.deepcopy(model), estimator=estimator, max_streams=streams, **arguments
        )
        self._streams = [f"camera-{k % streams}" for k in range(BATCH)]
        self._shown = 0

    def __call__(self, batch: Tensor) -> float:
        stamps = [(self._shown + k) / 25 for k in range(BATCH)]
        self._shown += BATCH
        started = time.perf_counter()
        self.processor(batch, streams=self._streams, pts_seconds=stamps)
        return time.perf_counter() - started

    def phase(self) -> str | None:
        """Of the first stream."""
        return self.processor.phase(self._streams[0])


def measure(
    model: nn.Module, candidate: Estimator, *, gain: float, pairs: int
) -> tuple[Ratios, str]:
    """Ratios of the candidate's step to the EMA's."""
    reference, other = (Stepper(model, one, backend="hooks") for one in (EMA(), candidate))
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        for number in range(pairs + WARM_UP):
            batch = frames(number, gain=gain)
            for one, times in zip((reference, other), seconds, strict=True):
                times.append(one(batch))
    before, ours = (times[WARM_UP:] for times in seconds)
    phase = other.phase()
    return paired_ratios(ours[:-1], before[:-1], before[1:]), phase or "no phases"


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="Cost of the default's update.")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-cost.json")
    options = parser.parse_args()
    where = environment()
    with torch.no_grad():
        model = adabn(resnet50(), [frames(1000 + k, gain=1.0) for k in range(8)])
    found, rows, judged = {}, [], []
    for name, estimator, gain in (
        ("EMA again (A/A)", EMA(), 1.0),
        ("default, resting", Restarting(), 1.0),
        ("default, following", Restarting(material=0.0), 0.5),
    ):
        ratios, phase = measure(model, estimator, gain=gain, pairs=options.pairs)
        found[name] = {**asdict(ratios), "phase": phase}
        rows.append([name, phase, str(ratios)])
        if "default" in name:
            text = f"{name}: step over an EMA's, median"
            judged.append(Claim.at_most(text, ratios.median, 1.01))
    print(table(["candidate", "phase at the end", "step over an EMA's"], rows))
    write(
        options.output,
        benchmark="adaptation.cost",
        arguments={"batch": BATCH, "side": SIDE, "pairs": options.pairs},
        environment=where,
        results=found,
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
