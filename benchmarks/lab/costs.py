"""What methods cost, in units of the frozen model: `python -m benchmarks.lab.costs [WORLD...]`.

Time for a batch, over that of the frozen model for a batch just before and just after it, on one
thread: the median of many such ratios, at the methods' default settings.

`--asset` writes the file that is part of the package instead: replays under a time constraint take
their costs from it, so that they come out the same everywhere.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

import streamadapt.replay
from benchmarks.lab.methods import methods
from benchmarks.lab.worlds import World, worlds
from benchmarks.models import normalize
from benchmarks.record import RESULTS, Ratios, environment, paired_ratios, table, write
from streamadapt.replay import Policy, PolicySpec, load_data
from streamadapt.replay.models import load_model
from streamadapt.replay.policies import build_policy
from streamadapt.replay.timing import cost_keys

ASSET = Path(streamadapt.replay.__file__).parent / "assets" / "relative_costs.json"
BATCH_SIZES = (64, 16, 1)
LEAST_PAIRS = 12
WARM_UP = 3


def measure(policy: Policy, frozen: nn.Module, batches: list[Tensor], *, pairs: int) -> Ratios:
    """Ratios of the policy's time to the frozen model's, in turn on the same batches."""
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        for number in range(pairs + WARM_UP):
            batch = batches[number % len(batches)]
            for answer, times in zip((frozen, policy), seconds, strict=True):
                started = time.perf_counter()
                answer(batch)
                times.append(time.perf_counter() - started)
    reference, candidate = (times[WARM_UP:] for times in seconds)
    return paired_ratios(candidate[:-1], reference[:-1], reference[1:])


def measure_all(
    world: World, specs: Sequence[PolicySpec], *, batch_size: int, pairs: int
) -> list[Ratios]:
    """Costs of policies on clean images of a world, in their order."""
    settings = world.settings
    data = load_data(world.data, resize=settings.get("resize"))
    images = data.x[: 4 * batch_size]
    frames = normalize(images, mean=settings["mean"], std=settings["std"])
    batches = list(frames.split(batch_size))
    found = []
    for spec in specs:
        policy = build_policy(spec)
        policy.start(load_model(world.model).eval(), calibration=batches)
        if policy.oracle:
            policy.domain_started(batches)
        found.append(measure(policy, load_model(world.model).eval(), batches, pairs=pairs))
        policy.finish()
    return found


def measure_world(world: World, *, pairs: int) -> None:
    """Every method at every batch size, printed and written to `lab-costs-WORLD.json`."""
    where = environment()
    specs = [method.spec(method.name, method.default) for method in methods(world)]
    found: dict[str, dict[str, Ratios]] = {spec.name: {} for spec in specs}
    for batch_size in BATCH_SIZES:
        # A large batch takes long and scatters little.
        enough = max(LEAST_PAIRS, pairs // (2 if batch_size > 1 else 1))
        if world.imagenet and batch_size > 1:
            enough = LEAST_PAIRS
        ratios = measure_all(world, specs, batch_size=batch_size, pairs=enough)
        for spec, one in zip(specs, ratios, strict=True):
            found[spec.name][str(batch_size)] = one
    rows = [[name, *map(str, each.values())] for name, each in found.items()]
    print(table([world.title, *(f"batch size {size}" for size in BATCH_SIZES)], rows), flush=True)
    write(
        RESULTS / f"lab-costs-{world.name}.json",
        benchmark="lab-costs",
        arguments={"world": world.name, "pairs": pairs},
        environment=where,
        results={
            "title": world.title,
            "costs": {
                name: {size: asdict(one) for size, one in each.items()}
                for name, each in found.items()
            },
        },
    )


def write_asset(*, pairs: int) -> None:
    """Every kind of policy, on ResNet-20 in batches of 64, into the package."""
    where = environment()
    world = worlds()["cifar10-resnet20"]
    specs = [method.spec(method.name, method.default) for method in methods(world)]
    specs += [
        PolicySpec(name, "estimator", estimator=name, timing="synchronous")
        for name in ("DUA", "Frozen", "Welford")
    ]
    ratios = measure_all(world, specs, batch_size=BATCH_SIZES[0], pairs=pairs)
    found = {cost_keys(spec)[1]: one for spec, one in zip(specs, ratios, strict=True)}
    print(table(["policy", "cost"], [[key, str(one)] for key, one in sorted(found.items())]))
    content = {
        "model": f"{world.title}, batch size {BATCH_SIZES[0]}, one thread",
        **where,
        "costs": {key: round(one.median, 3) for key, one in sorted(found.items())},
        "spread": {key: [round(r.p10, 3), round(r.p90, 3)] for key, r in sorted(found.items())},
    }
    ASSET.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Measure."""
    every = worlds()
    parser = argparse.ArgumentParser(description="Costs of all methods relative to frozen.")
    parser.add_argument("world", nargs="*", help=f"of {', '.join(every)}; default: all")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--asset", action="store_true", help="write the package's file instead")
    options = parser.parse_args()
    unknown = set(options.world) - set(every)
    if unknown:
        parser.error(f"there is no world {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    if options.asset:
        write_asset(pairs=options.pairs)
        return
    for name in options.world or every:
        measure_world(every[name], pairs=options.pairs)


if __name__ == "__main__":
    main()
