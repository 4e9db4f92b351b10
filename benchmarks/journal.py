"""What a journal costs a step, and how fast it is replayed: `python -m benchmarks.journal`.

Each step that is recorded runs between two that are not, by a second processor of the same model
(A-B-A); the frozen model runs beside them. Then the journal is replayed, as recorded and with
another estimator, and the time of a batch is compared with the model's own.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import streamadapt as sa
from benchmarks import models
from benchmarks.record import RESULTS, Claim, environment, paired_ratios, report, table, write
from streamadapt.journal import Journal, replay_journal

BOUND_OVERHEAD = 1.05
WANTED_SPEED = 1000.0


@dataclass(frozen=True)
class Case:
    """A network on batches of one shape."""

    name: str
    build: Callable[[], nn.Module]
    batch: int
    size: int
    steps: int


CASES = (
    Case("ResNet-20", lambda: models.cifar_resnet(20), 16, 32, 200),
    Case("ResNet-18", models.resnet18, 8, 224, 60),
    Case("ResNet-50", models.resnet50, 8, 224, 60),
)


def timed(act: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def measure(case: Case, precision: str) -> dict[str, object]:
    """One row of the table."""
    torch.manual_seed(0)
    frozen = case.build()
    batches = [torch.randn(case.batch, 3, case.size, case.size) for _ in range(4)]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        journal = Journal(folder, precision=precision, max_file_bytes=1 << 30)  # type: ignore[arg-type]
        plain = sa.StreamProcessor(copy.deepcopy(frozen))
        recorded = sa.StreamProcessor(copy.deepcopy(frozen), journal=journal)
        seconds: dict[str, list[float]] = {"plain": [], "recorded": [], "frozen": []}

        def run(name: str, model: Callable[[Tensor], object], step: int) -> None:
            seconds[name].append(timed(lambda: model(batches[step % len(batches)])))

        for _ in range(5):
            plain(batches[0]), frozen(batches[0])
        run("plain", plain, 0)
        for step in range(case.steps):
            run("recorded", recorded, step)
            run("plain", plain, step)
            run("frozen", frozen, step)
        plain.unwrap()
        recorded.unwrap()
        size = sum(file.stat().st_size for file in Path(folder).glob("*.saj"))
        replays: dict[str, list[float]] = {"as recorded": [], "Welford": []}
        for _ in range(3):
            for name, other in (("as recorded", None), ("Welford", sa.estimators.Welford())):
                replays[name].append(
                    timed(lambda other=other: replay_journal(folder, estimator=other))  # type: ignore[misc]
                )
        deviation = replay_journal(folder).deviation
    ratios = paired_ratios(seconds["recorded"], seconds["plain"][:-1], seconds["plain"][1:])
    forward = float(np.median(seconds["frozen"]))
    return {
        "model": case.name,
        "batch": case.batch,
        "precision": precision,
        "overhead": asdict(ratios),
        "bytes_per_record": size / (case.steps + 1),
        "model_seconds": forward,
        "replay_seconds": {name: min(runs) / case.steps for name, runs in replays.items()},
        "speed": {name: forward / (min(runs) / case.steps) for name, runs in replays.items()},
        "deviation": deviation,
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="What a journal costs, and how fast it replays.")
    parser.add_argument("--output", type=Path, default=RESULTS / "journal.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = environment()
    rows = [measure(case, precision) for case in CASES for precision in ("single", "half")]
    by_key = {(row["model"], row["precision"]): row for row in rows}
    largest = by_key["ResNet-50", "single"]
    claims = [
        Claim.at_most(
            f"step with a journal over one without, {name}",
            by_key[name, "single"]["overhead"]["median"],  # type: ignore[index]
            BOUND_OVERHEAD,
        )
        for name in ("ResNet-20", "ResNet-18", "ResNet-50")
    ]
    claims.append(
        Claim.at_least(
            "ResNet-50, batch 8: batches replayed in the time of one forward",
            largest["speed"]["as recorded"],  # type: ignore[index]
            WANTED_SPEED,
        )
    )
    shown = [
        [
            f"{row['model']}, {row['batch']}, {row['precision']}",
            f"{row['overhead']['median']:.3f}",  # type: ignore[index]
            f"{row['bytes_per_record'] / 1024:.0f}",
            *(f"{value:,.0f}" for value in row["speed"].values()),  # type: ignore[attr-defined]
        ]
        for row in rows
    ]
    print(table(["", "step over none", "KiB a record", "replay speed", "Welford"], shown))
    write(
        arguments.output,
        benchmark="journal",
        arguments={"threads": 1},
        environment=facts,
        results={"rows": rows},
        claims=claims,
    )
    report(claims, written=arguments.output)
    return 0 if all(claim.holds for claim in claims) else 1


if __name__ == "__main__":
    raise SystemExit(main())
