"""What each policy costs, in units of the frozen model: `python -m benchmarks.lab.costs`.

Time for a batch, over that of the frozen model for a batch just before and just after it, on one
thread: the median of many such ratios. The file that this writes is part of the package: replays
under a time constraint take their costs from it, so that they come out the same everywhere.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import streamadapt.replay
from benchmarks.lab.methods import methods
from benchmarks.lab.worlds import worlds
from benchmarks.models import IMAGENET_MEAN, IMAGENET_STD, load_cifar_resnet, normalize
from benchmarks.record import Ratios, environment, paired_ratios, table
from streamadapt.replay import Policy, PolicySpec, load_data
from streamadapt.replay.policies import build_policy
from streamadapt.replay.timing import cost_keys

TARGET = Path(streamadapt.replay.__file__).parent / "assets" / "relative_costs.json"


def measure(policy: Policy, frozen: nn.Module, batches: list[Tensor], *, pairs: int) -> Ratios:
    """Ratios of the policy's time to the frozen model's, in turn on the same batches."""
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        for number in range(pairs + 3):
            batch = batches[number % len(batches)]
            for answer, times in zip((frozen, policy), seconds, strict=True):
                started = time.perf_counter()
                answer(batch)
                times.append(time.perf_counter() - started)
    reference, candidate = (times[3:] for times in seconds)  # the first few warm up
    return paired_ratios(candidate[:-1], reference[:-1], reference[1:])


def main() -> None:
    """Measure every kind of policy once, at its default settings."""
    parser = argparse.ArgumentParser(description="Costs of all policies relative to frozen.")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=TARGET)
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = environment()
    world = worlds()["cifar10-resnet20"]
    images = load_data(world.data).x[: 4 * options.batch_size]
    frames = normalize(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    batches = list(frames.split(options.batch_size))
    found: dict[str, Ratios] = {}
    specs = [method.spec(method.name, method.default) for method in methods(world)]
    specs += [
        PolicySpec(name, "estimator", estimator=name, timing="synchronous")
        for name in ("DUA", "Frozen", "Welford")
    ]
    for spec in specs:
        policy = build_policy(spec)
        policy.start(load_cifar_resnet(20), calibration=batches)
        if policy.oracle:
            policy.domain_started(batches)
        found[cost_keys(spec)[1]] = measure(
            policy, load_cifar_resnet(20), batches, pairs=options.pairs
        )
        policy.finish()
    rows = [[key, str(ratios)] for key, ratios in sorted(found.items())]
    print(table(["policy", "cost"], rows))
    content = {
        "model": f"{world.title}, batch size {options.batch_size}, one thread",
        **where,
        "costs": {key: round(ratios.median, 3) for key, ratios in sorted(found.items())},
        "spread": {key: [round(r.p10, 3), round(r.p90, 3)] for key, r in sorted(found.items())},
    }
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {options.output.name}")


if __name__ == "__main__":
    main()
