"""Whether kernels change what adaptation does: `python -m benchmarks.adaptation.backends`.

The continual streams of CIFAR-10 with ResNet-20, images of the test part: each estimator once with
kernels that normalise, add, clamp and take moments in one pass, and once with PyTorch's. Both are
the same rule; rounding is not, and decisions hang on it. Told are both errors, by how much they
differ with an interval from a paired block bootstrap, and how many answers do.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.adaptation.continual import configuration
from benchmarks.guard.frames import shown
from benchmarks.lab.continual import continual
from benchmarks.lab.worlds import worlds
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt import Guard, StreamProcessor
from streamadapt.estimators import EMA
from streamadapt.replay import PolicySpec
from streamadapt.replay.bootstrap import paired_interval

STREAMS = ("i.i.d., 64", "correlated, 16", "mixed, 64")
POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "default, synchronous": {"timing": "synchronous"},
    "default, guard": {"guard": Guard()},
    "EMA 0.03": {"estimator": EMA(momentum=0.03)},
    "EMA 0.1, guard": {"estimator": EMA(momentum=0.1), "guard": Guard()},
}
BACKENDS = ("auto", "hooks")
DECISIONS = ("PhaseChanged", "SettlingPassed", "SettlingRefused", "GuardActed", "FramesRejected")


def answers(stream: str, seed: int, *, frames: int) -> dict[str, Any]:
    """Right answers of every policy with each backend, `[frames]`, and what they decided."""
    scenario = continual(
        worlds()["cifar10-resnet20"],
        stream,
        part="test",
        seed=seed,
        policies=[PolicySpec("frozen", "frozen")],
        frames=frames,
    )
    source, batches = shown(scenario)
    processors = {
        (name, backend): StreamProcessor(
            copy.deepcopy(source), backend=backend, alarms=None, **arguments
        )
        for name, arguments in POLICIES.items()
        for backend in BACKENDS
    }
    domains: list[Any] = []
    labels: list[Any] = []
    classes: dict[Any, list[Any]] = {key: [] for key in processors}
    with torch.inference_mode():
        for batch in batches:
            domains.append(batch.domains)
            labels.append(batch.labels)
            for key, processor in processors.items():
                output = processor(batch.frames, pts_seconds=batch.seconds)
                classes[key].append(output.argmax(dim=1).numpy())
    wanted = np.concatenate(labels)
    found: dict[str, Any] = {
        "domains": np.concatenate(domains),
        "backends": [processors["default", backend].describe().backend for backend in BACKENDS],
    }
    for name in POLICIES:
        given = [np.concatenate(classes[name, backend]) for backend in BACKENDS]
        told = [processors[name, backend].event_counts for backend in BACKENDS]
        found[name] = {
            "right": [one == wanted for one in given],
            "other": float((given[0] != given[1]).mean()),
            "decisions": [{key: one.get(key, 0) for key in DECISIONS} for one in told],
        }
    for processor in processors.values():
        processor.unwrap()
    return found


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="Adaptation with kernels and without.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=1280, help="of a domain")
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-backends.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for stream in STREAMS:
        runs = [answers(stream, seed, frames=options.frames) for seed in range(options.seeds)]
        for name in POLICIES:
            pairs = [(*one[name]["right"], one["domains"]) for one in runs]
            apart = paired_interval(pairs)
            errors = [
                float(np.mean([1.0 - one[name]["right"][k].mean() for one in runs]))
                for k in range(2)
            ]
            rows.append(
                {
                    "stream": stream,
                    "policy": name,
                    "error": dict(zip(("kernels", "hooks"), errors, strict=True)),
                    "difference": [apart.estimate, apart.low, apart.high],
                    "other_answers": float(np.mean([one[name]["other"] for one in runs])),
                    "decisions": [one[name]["decisions"] for one in runs],
                }
            )
            print(stream, name, errors, flush=True)
    header = ["stream", "policy", "kernels", "hooks", "difference", "other answers"]
    shown_rows = [
        [
            row["stream"],
            row["policy"],
            *(f"{100 * row['error'][key]:.2f}" for key in ("kernels", "hooks")),
            "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * one for one in row["difference"])),
            f"{100 * row['other_answers']:.2f} %",
        ]
        for row in rows
    ]
    print(table(header, shown_rows))
    within = sum(row["difference"][1] <= 0.0 <= row["difference"][2] for row in rows)
    largest = max(abs(row["difference"][0]) for row in rows)
    claims = [
        Claim.at_least("rows whose interval holds zero, as a share", within / len(rows), 0.9),
        Claim.at_most("largest difference of errors, points", 100 * largest, 0.2),
    ]
    write(
        options.output,
        benchmark="adaptation.backends",
        arguments={"seeds": options.seeds, "frames": options.frames},
        environment=environment(),
        results={"rows": rows, "configuration": configuration(), "backends": runs[0]["backends"]},
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
