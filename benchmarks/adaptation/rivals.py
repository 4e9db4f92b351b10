"""The default beside every statistics-only method: `python -m benchmarks.adaptation.rivals`.

On the continual streams, with images of the test part and all corruptions. Each rival counts with
the better of its published default and the setting that the lab's tuning found; the default
estimator has one. Killed runs continue: `benchmarks/.runs/` holds what is done.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.adaptation.continual import configuration
from benchmarks.lab.continual import SEVERITY, continual
from benchmarks.lab.methods import methods
from benchmarks.lab.run import specs
from benchmarks.lab.tune import RUNS
from benchmarks.lab.worlds import worlds
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt.estimators import Restarting
from streamadapt.replay import run

WORLD = "cifar10-resnet20"
FRAMES = {
    "i.i.d., 64": 1280,
    "correlated, 16": 1280,
    "mixed, 64": 1280,
    "recurring, 16": 1280,
    "i.i.d., 1": 320,
    "correlated, 1": 320,
}
"""Frames a domain; single frames take as long as sixteen of a batch."""

SEEDS = (0,)
OURS, FROZEN = "default", "frozen"


def main() -> None:
    """Every method on every stream."""
    parser = argparse.ArgumentParser(description="The default beside other statistics rules.")
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-rivals.json")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--streams", nargs="+", default=list(FRAMES))
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    world = worlds()[WORLD]
    chosen = [m.name for m in methods(world) if m.family in ("reference", "statistics")]
    policies = tuple(one for one in specs(world) if one.name.removesuffix(" (tuned)") in chosen)
    found: dict[str, dict[str, float]] = {name: {} for name in chosen}
    for stream in options.streams:
        errors: dict[str, list[float]] = {policy.name: [] for policy in policies}
        for seed in SEEDS:
            scenario = continual(
                world, stream, part="test", seed=seed, policies=policies, frames=FRAMES[stream]
            )
            slug = stream.replace(", ", "-").replace(".", "")
            folder = RUNS / f"rivals-{slug}-{seed}-{configuration()}"
            result = run(scenario, run_dir=folder, jobs=options.jobs)
            for policy in policies:
                errors[policy.name].append(result.mean_error(policy.name))
        for name in chosen:
            settings = [one for one in (name, f"{name} (tuned)") if one in errors]
            found[name][stream] = min(float(np.mean(errors[one])) for one in settings)
        print(f"{stream} done", flush=True)
    means = {name: 100 * float(np.mean(list(each.values()))) for name, each in found.items()}
    rows = [
        [name, *(f"{100 * found[name][stream]:.1f}" for stream in options.streams), f"{mean:.1f}"]
        for name, mean in sorted(means.items(), key=lambda pair: pair[1])
    ]
    print(table(["error %", *options.streams, "mean"], rows))
    best = min(mean for name, mean in means.items() if name not in (OURS, FROZEN))
    judged = [
        Claim.at_most("mean error of the default, at most the best rival's", means[OURS], best)
    ]
    write(
        options.output,
        benchmark="adaptation.rivals",
        arguments={
            "world": WORLD,
            "seeds": SEEDS,
            "frames": {stream: FRAMES[stream] for stream in options.streams},
            "severity": SEVERITY,
            "configuration": configuration(),
            "estimator": repr(Restarting()),
        },
        environment=where,
        results={"title": world.title, "methods": found},
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
