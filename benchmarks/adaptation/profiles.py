"""What a profile of the source buys the default: `python -m benchmarks.adaptation.profiles`.

The continual streams, answered with a profile from clean images that no stream shows, and without
one. The oracle, offline AdaBN, sees each domain whole before it answers.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.adaptation.continual import FRAMES, configuration
from benchmarks.lab.continual import SEVERITY, continual
from benchmarks.lab.worlds import worlds
from benchmarks.models import normalize
from benchmarks.record import RESULTS, environment, report, table, write
from streamadapt import SourceProfile, calibrate
from streamadapt.estimators import Restarting
from streamadapt.replay import (
    AdaBNPolicy,
    FrozenPolicy,
    PolicySpec,
    ProcessorPolicy,
    ReplayResult,
    load_data,
    run,
)
from streamadapt.replay.bootstrap import paired_interval
from streamadapt.replay.models import load_model
from streamadapt.replay.one_thread import keep_freed_memory
from streamadapt.replay.split import Split

WORLDS = ("cifar10-resnet20", "digits")
STREAMS = ("i.i.d., 64", "correlated, 16", "mixed, 64", "clean, correlated, 16")
SEEDS = (0, 1, 2, 3, 4)
CALIBRATION_BATCH = 64
FROZEN, ORACLE, OURS, PROFILED = "frozen", "AdaBN", "default", "default, with a profile"
POLICIES = (FROZEN, ORACLE, OURS, PROFILED)


def profile(name: str) -> SourceProfile:
    """Of a world's model, from the clean images of the parts that no stream shows."""
    world = worlds()[name]
    settings = world.settings
    data = load_data(world.data, resize=settings.get("resize"))
    split = Split.load(world.split)
    chosen = np.random.default_rng(0).permutation(np.concatenate([split.calibrate, split.tune]))
    images = normalize(data.x[chosen], mean=settings["mean"], std=settings["std"])
    return calibrate(load_model(world.model).eval(), images.split(CALIBRATION_BATCH))


def one(name: str, stream: str, seed: int, known: SourceProfile) -> ReplayResult:
    """One stream of a world."""
    torch.set_num_threads(1)
    keep_freed_memory()
    world = worlds()[name]
    spec = PolicySpec(FROZEN, "frozen")
    scenario = continual(
        world, stream, part="test", seed=seed, policies=(spec,), frames=FRAMES[name]
    )
    return run(
        scenario,
        model=load_model(world.model),
        data=load_data(world.data, resize=world.settings.get("resize")),
        policies=[
            FrozenPolicy(FROZEN),
            AdaBNPolicy(ORACLE),
            ProcessorPolicy(OURS),
            ProcessorPolicy(PROFILED, profile=known),
        ],
    )


def summarise(found: list[ReplayResult]) -> dict[str, Any]:
    """Errors, and by how much they are above the oracle's and the frozen model's."""
    return {
        policy: {
            "error": float(np.mean([each.mean_error(policy) for each in found])),
            **{
                f"less_{key}": _difference(found, policy, rival)
                for key, rival in (("oracle", ORACLE), ("frozen", FROZEN))
                if policy != rival
            },
        }
        for policy in POLICIES
    }


def _difference(found: list[ReplayResult], policy: str, rival: str) -> list[float]:
    interval = paired_interval(
        [
            (each.policy(policy).correct, each.policy(rival).correct, each.frame_domains)
            for each in found
        ]
    )
    return [interval.low, interval.estimate, interval.high]


def main() -> None:
    """Every world and stream."""
    parser = argparse.ArgumentParser(description="The default with and without a profile.")
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-profiles.json")
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    known = {name: profile(name) for name in options.worlds}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running = {
            (name, stream): [pool.submit(one, name, stream, seed, known[name]) for seed in SEEDS]
            for name, stream in product(options.worlds, STREAMS)
        }
        results: dict[str, Any] = {}
        for (name, stream), futures in running.items():
            found = summarise([each.result() for each in futures])
            results.setdefault(name, {})[stream] = found
            errors = ", ".join(f"{key} {100 * row['error']:.2f}" for key, row in found.items())
            print(f"{name}, {stream}: {errors}", flush=True)
    rows = [
        [name, stream, *(f"{100 * row['error']:.1f}" for row in found.values())]
        for name, streams in results.items()
        for stream, found in streams.items()
    ]
    print(table(["world", "stream", *POLICIES], rows))
    write(
        options.output,
        benchmark="adaptation.profiles",
        arguments={
            "seeds": SEEDS,
            "frames": {name: FRAMES[name] for name in options.worlds},
            "severity": SEVERITY,
            "configuration": configuration(),
            "calibrated": {
                name: repr(Restarting().calibrated(each)) for name, each in known.items()
            },
        },
        environment=where,
        results={worlds()[name].title: streams for name, streams in results.items()},
    )
    report([], written=options.output)


if __name__ == "__main__":
    main()
