"""Worlds that come back: `python -m benchmarks.guard.domains`.

CIFAR-10, ResNet-20, test part: four corruptions that return in random order, class-correlated
frames, batches of 16; the default estimator with and without a memory of domains, beside offline
AdaBN over each domain. Then the continual stream, where no domain comes back: none should be taken
for one that was there before.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.adaptation.continual import configuration
from benchmarks.guard.frames import shown
from benchmarks.lab.continual import continual
from benchmarks.lab.worlds import worlds
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt import StreamProcessor, adabn
from streamadapt.events import DomainRecalled, Event, PhaseChanged, SettlingPassed
from streamadapt.replay import PolicySpec
from streamadapt.replay.bootstrap import paired_interval

CAPACITY = 4
SEEDS = (0, 1, 2, 3)
FIRST_BATCHES, LATE = 10, range(5, 21)  # of a visit; visits 5 to 20
NEVER_BACK_FRAMES = 384


def recurring(seed: int) -> dict[str, Any]:
    """Right answers in the first batches of late visits, and what was recalled."""
    torch.set_num_threads(1)
    scenario = continual(
        worlds()["cifar10-resnet20"],
        "recurring, 16",
        part="test",
        seed=seed,
        policies=[PolicySpec("frozen", "frozen")],
    )
    source, batches = shown(scenario)
    listed = list(batches)
    by_visit: dict[int, list[Any]] = {}
    for batch in listed:
        by_visit.setdefault(int(batch.domains[0]), []).append(batch.frames)
    names = _visit_names(scenario)
    oracles: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        own = [f for visit, frames in by_visit.items() if names[visit] == name for f in frames]
        oracles[name] = adabn(source, [torch.cat(own[k : k + 4]) for k in range(0, len(own), 4)])
    events: dict[int, list[Event]] = {0: [], CAPACITY: []}
    processors = {
        capacity: StreamProcessor(
            copy.deepcopy(source), domains=capacity, alarms=None, on_event=seen.append
        )
        for capacity, seen in events.items()
    }
    right: dict[str, list[Any]] = {"oracle": [], "without": [], "with": []}
    late, visits, before, place = [], Counter[str](), -1, 0
    with torch.no_grad():
        for batch in listed:
            visit = int(batch.domains[0])
            name = names[visit]
            if visit != before:
                visits[name] += 1
                before, place = visit, 0
            place += 1
            late.append(visits[name] in LATE and place <= FIRST_BATCHES)
            answers = {
                "oracle": oracles[name](batch.frames),
                "without": processors[0](batch.frames, pts_seconds=batch.seconds),
                "with": processors[CAPACITY](batch.frames, pts_seconds=batch.seconds),
            }
            for policy, output in answers.items():
                right[policy].append(output.argmax(1).numpy() == batch.labels)
    return {
        "right": {
            policy: np.concatenate([r for r, is_late in zip(parts, late, strict=True) if is_late])
            for policy, parts in right.items()
        },
        "passes": {
            name: sum(isinstance(event, SettlingPassed) for event in events[capacity])
            for name, capacity in (("without", 0), ("with", CAPACITY))
        },
        "recalls": sum(isinstance(event, DomainRecalled) for event in events[CAPACITY]),
    }


def _visit_names(scenario: Any) -> list[str]:
    from streamadapt.replay import load_data
    from streamadapt.replay.stream import Stream

    return [span.name for span in Stream(scenario, data=load_data(scenario.data)).spans]


def never_back(seed: int) -> dict[str, int]:
    """Changes of domain, and how many of them were taken for a return."""
    torch.set_num_threads(1)
    scenario = continual(
        worlds()["cifar10-resnet20"],
        "correlated, 16",
        part="test",
        seed=seed,
        policies=[PolicySpec("frozen", "frozen")],
        frames=NEVER_BACK_FRAMES,
    )
    source, batches = shown(scenario)
    events: list[Event] = []
    with (
        torch.no_grad(),
        StreamProcessor(source, domains=CAPACITY, alarms=None, on_event=events.append) as processor,
    ):
        for batch in batches:
            processor(batch.frames, pts_seconds=batch.seconds)
    changes = [one for one in events if isinstance(one, PhaseChanged) and one.phase == "settling"]
    recalls = [one for one in events if isinstance(one, DomainRecalled)]
    return {"changes": len(changes), "recalls": len(recalls)}


def main() -> None:
    """All seeds of both streams."""
    parser = argparse.ArgumentParser(description="A memory of domains.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "guard-domains.json")
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        back = [pool.submit(recurring, seed) for seed in SEEDS]
        never = [pool.submit(never_back, seed) for seed in SEEDS]
        returns = [one.result() for one in back]
        print("recurring done", flush=True)
        news = [one.result() for one in never]
    errors = {
        policy: 1.0 - float(np.mean(np.concatenate([one["right"][policy] for one in returns])))
        for policy in ("oracle", "without", "with")
    }
    pairs = [
        (one["right"]["with"], one["right"]["without"], np.zeros(len(one["right"]["with"]), int))
        for one in returns
    ]
    interval = paired_interval(pairs)
    changes = sum(one["changes"] for one in news)
    mistaken = sum(one["recalls"] for one in news)
    closer = 1.0 - (errors["with"] - errors["oracle"]) / (errors["without"] - errors["oracle"])
    passes = {name: sum(one["passes"][name] for one in returns) for name in ("without", "with")}
    results = {
        "errors": errors,
        "with_less_without": [interval.low, interval.estimate, interval.high],
        "closer": closer,
        "recalls": sum(one["recalls"] for one in returns),
        "settling_passes": passes,
        "changes_to_new_domains": changes,
        "taken_for_known": mistaken,
    }
    rows = [[name, f"{100 * error:.2f}"] for name, error in errors.items()]
    print(table(["first batches of late visits", "error, %"], rows))
    print(results)
    claims = [
        Claim.at_least("how much closer to the oracle", closer, 0.3),
        Claim.at_least("new domains not mistaken", 1.0 - mistaken / max(changes, 1), 0.95),
        Claim.at_most(
            "second forwards, with over without", passes["with"] / passes["without"], 1.0
        ),
    ]
    write(
        options.output,
        benchmark="guard.domains",
        arguments={
            "seeds": SEEDS,
            "capacity": CAPACITY,
            "first_batches": FIRST_BATCHES,
            "late_visits": [LATE.start, LATE.stop - 1],
            "configuration": configuration(),
        },
        environment=where,
        results=results,
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
