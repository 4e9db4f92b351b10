"""MobileNetV2 by severity of the degradation: `python -m benchmarks.adaptation.imagenet`.

Nothing was chosen on this network or on these images. The default estimator answers batches of 16,
with a profile from clean images that no stream shows, and without one. The oracle, offline AdaBN,
sees all frames of a domain, in batches of 64, before the first. Killed runs continue:
`benchmarks/.runs/` holds what is done.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.adaptation.continual import configuration
from benchmarks.adaptation.profiles import FROZEN, ORACLE, OURS, PROFILED, profile
from benchmarks.lab.tune import RUNS
from benchmarks.lab.worlds import worlds
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt import SourceProfile
from streamadapt.estimators import Restarting
from streamadapt.replay import (
    AdaBNPolicy,
    Domain,
    FrozenPolicy,
    Policy,
    ProcessorPolicy,
    ReplayResult,
    Scenario,
    load_data,
    run,
)
from streamadapt.replay.bootstrap import paired_interval
from streamadapt.replay.models import load_model
from streamadapt.replay.one_thread import keep_freed_memory

DEGRADATIONS = ("fog", "low_light", "motion_blur", "colour_cast")
SEVERITIES = (1, 2, 3, 4, 5)
SEEDS = (0, 1, 2, 3, 4)
DOMAIN_FRAMES = 384
BATCH, ORACLE_BATCH = 16, 64


def one(seed: int, severity: int, known: SourceProfile) -> tuple[ReplayResult, ReplayResult]:
    """A stream at one severity, in batches of 64 for the oracle and of 16 for the rest."""
    folder = RUNS / f"imagenet-{configuration()}"
    kept = [folder / f"{seed}-{severity}-{size}.json" for size in (ORACLE_BATCH, BATCH)]
    if not all(path.exists() for path in kept):
        folder.mkdir(parents=True, exist_ok=True)
        for path, result in zip(kept, _answer(seed, severity, known), strict=True):
            beside = path.with_suffix(f".{os.getpid()}")
            beside.write_text(result.to_json())
            beside.replace(path)
    oracle, ours = (ReplayResult.load(path) for path in kept)
    return oracle, ours


def _answer(seed: int, severity: int, known: SourceProfile) -> tuple[ReplayResult, ReplayResult]:
    torch.set_num_threads(1)
    keep_freed_memory()
    world = worlds()["imagenet-mobilenetv2"]
    data = load_data(world.data, resize=world.settings["resize"])
    settings = {key: value for key, value in world.settings.items() if key != "class_groups"}

    def answered(batch_size: int, policies: list[Policy]) -> ReplayResult:
        scenario = Scenario(
            f"{world.title}, severity {severity}",
            tuple(
                Domain(name, DOMAIN_FRAMES, name, severity=severity)
                for name in ("none", *DEGRADATIONS)
            ),
            seed=seed,
            batch_size=batch_size,
            split=world.split,
            part="test",
            **settings,
        )
        return run(scenario, model=load_model(world.model), data=data, policies=policies)

    return (
        answered(ORACLE_BATCH, [FrozenPolicy(FROZEN), AdaBNPolicy(ORACLE)]),
        answered(BATCH, [ProcessorPolicy(OURS), ProcessorPolicy(PROFILED, profile=known)]),
    )


def summarise(found: dict[tuple[int, int], tuple[ReplayResult, ReplayResult]]) -> dict[str, Any]:
    """Errors by severity and domain, what is recovered of what the oracle recovers."""
    out: dict[str, Any] = {"severities": {}, "policies": {}}
    for severity in SEVERITIES:
        mine = [pair for (_, one), pair in found.items() if one == severity]
        out["severities"][severity] = {
            policy: np.mean([_result(pair, policy).error(policy) for pair in mine], axis=0).tolist()
            for policy in (FROZEN, ORACLE, OURS, PROFILED)
        }
    moved = {
        policy: np.array([out["severities"][s][policy][1:] for s in SEVERITIES])
        for policy in (FROZEN, ORACLE, OURS, PROFILED)
    }
    gain = float((moved[FROZEN] - moved[ORACLE]).mean())
    for policy in (OURS, PROFILED):
        pairs = []
        for first, second in found.values():
            clean = np.where(second.frame_domains == 0, 0, -1)
            pairs.append((second.policy(policy).correct, first.policy(FROZEN).correct, clean))
        interval = paired_interval(pairs)
        out["policies"][policy] = {
            "recovered": float((moved[FROZEN] - moved[policy]).mean()) / gain,
            "clean_less_frozen": [interval.low, interval.estimate, interval.high],
        }
    out["oracle_gain"] = gain
    return out


def _result(pair: tuple[ReplayResult, ReplayResult], policy: str) -> ReplayResult:
    return pair[0] if policy in (FROZEN, ORACLE) else pair[1]


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="MobileNetV2, severity by severity.")
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-imagenet.json")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    seeds = SEEDS[: options.seeds]
    known = profile("imagenet-mobilenetv2")
    found = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running = {
            (seed, severity): pool.submit(one, seed, severity, known)
            for seed in seeds
            for severity in SEVERITIES
        }
        for key, future in running.items():
            found[key] = future.result()
            print(f"seed {key[0]}, severity {key[1]} done", flush=True)
    results = summarise(found)
    header = ["severity", "policy", "clean", *DEGRADATIONS]
    rows = [
        [str(severity), policy, *(f"{100 * error:.1f}" for error in errors)]
        for severity, each in results["severities"].items()
        for policy, errors in each.items()
    ]
    print(table(header, rows))
    judged = []
    for policy, row in results["policies"].items():
        judged.append(Claim.at_least(f"{policy}: share of AdaBN's gain", row["recovered"], 0.8))
        judged.append(
            Claim.at_most(
                f"{policy}: clean less frozen, upper end, points",
                100 * row["clean_less_frozen"][2],
                1.5,
            )
        )
    write(
        options.output,
        benchmark="adaptation.imagenet",
        arguments={
            "seeds": seeds,
            "frames": DOMAIN_FRAMES,
            "batch_size": BATCH,
            "degradations": DEGRADATIONS,
            "configuration": configuration(),
            "estimator": repr(Restarting()),
            "calibrated": repr(Restarting().calibrated(known)),
        },
        environment=where,
        results=results,
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
