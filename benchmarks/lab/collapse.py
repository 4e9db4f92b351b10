"""Do gradient methods degrade as domains come back? `python -m benchmarks.lab.collapse`.

The recurring stream, answered by batch statistics alone and by methods that also take a step of
gradient descent a batch on top of them: Tent at its rate and at larger ones, and RDumb with its
reset after 1000 batches, which this stream never reaches, and with an earlier one. What grows with
the rate, and goes away with the reset, is the steps' doing.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.lab.methods import methods
from benchmarks.lab.tune import RUNS
from benchmarks.lab.worlds import RECURRING_VISITS, World, worlds
from benchmarks.record import RESULTS, environment, table, write
from streamadapt.replay import PolicySpec, ReplayResult, run
from streamadapt.replay.bootstrap import paired_interval

STREAM = "recurring ×20, 16"
SEEDS = 3
GROUP = 4  # visits
NO_STEPS = "batch statistics"
DEFAULT_WORLDS = ("digits", "cifar10-resnet20")


def specs(world: World) -> tuple[PolicySpec, ...]:
    """Batch statistics, and steps of growing size on top of them."""
    known = {method.name: method for method in methods(world)}
    rdumb = known["RDumb"].default
    every = [known[name].spec(name, {}) for name in ("frozen", NO_STEPS)]
    every += [
        PolicySpec(
            f"Tent, Adam at {rate:g}",
            "tent",
            parameters={"optimizer": "adam", "learning_rate": rate},
        )
        for rate in (1e-3, 3e-3, 1e-2)
    ]
    every += [
        PolicySpec(
            f"RDumb, reset after {reset} batches",
            "rdumb",
            parameters={**rdumb, "reset_every": reset},
        )
        for reset in (1000, 50)
    ]
    return tuple(every)


def summarise(results: list[ReplayResult]) -> dict[str, Any]:
    """Error by groups of visits, and in the last group against batch statistics."""
    last = RECURRING_VISITS - GROUP
    found = {}
    for policy in results[0].policies:
        pairs, by_visit = [], []
        for result in results:
            right, rival, domains = map(np.asarray, result.pair(policy.name, NO_STEPS))
            visits = np.array([span.visit for span in result.domains])
            late = np.where(domains >= 0, visits[domains] >= last, False)
            pairs.append((right, rival, np.where(late, domains, -1)))
            errors = np.array(result.error(policy.name))
            by_visit.append([errors[visits == v].mean() for v in range(RECURRING_VISITS)])
        groups = np.mean(by_visit, axis=0).reshape(-1, GROUP).mean(axis=1)
        one = paired_interval(pairs)
        found[policy.name] = {
            "error_by_group": groups.tolist(),
            "last_less_batch_statistics": [one.low, one.estimate, one.high],
        }
    return found


def main() -> None:
    """Run some worlds."""
    parser = argparse.ArgumentParser(description="Gradient methods on domains that come back.")
    parser.add_argument("worlds", nargs="*", default=DEFAULT_WORLDS, metavar="WORLD")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    known = worlds()
    if unknown := set(options.worlds) - set(known):
        parser.error(f"unknown world {min(unknown)!r}; known: {', '.join(known)}")
    where = environment()
    for name in options.worlds:
        world, results = known[name], []
        for seed in range(SEEDS):
            scenario = world.scenario(STREAM, part="test", seed=seed, policies=specs(world))
            folder = RUNS / f"collapse-{name}-{seed}"
            results.append(run(scenario, run_dir=folder, jobs=options.jobs))
        found = summarise(results)
        rows = [
            [policy, *(f"{100 * error:.1f}" for error in one["error_by_group"])]
            for policy, one in found.items()
        ]
        header = [f"visits {k + 1} to {k + GROUP}" for k in range(0, RECURRING_VISITS, GROUP)]
        print(f"{world.title}\n{table(['error %', *header], rows)}", flush=True)
        write(
            RESULTS / f"lab-collapse-{name}.json",
            benchmark="lab.collapse",
            arguments={"world": name, "seeds": SEEDS},
            environment=where,
            results={"title": world.title, "group": GROUP, "policies": found},
        )


if __name__ == "__main__":
    main()
