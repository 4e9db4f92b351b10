"""What each part of the default estimator does: `python -m benchmarks.adaptation.ablation`.

On images of the tune part and design corruptions, where its settings were chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adaptation.continual import configuration
from benchmarks.lab.continual import DOMAIN_FRAMES, SEVERITY, continual
from benchmarks.lab.worlds import worlds
from benchmarks.record import RESULTS, environment, report, table, write
from streamadapt.estimators import Restarting
from streamadapt.replay import PolicySpec, run
from streamadapt.replay.corruptions import DESIGN_CORRUPTIONS

SEEDS = (0, 1, 2)
WORLD = "cifar10-resnet20"
STREAMS = ("i.i.d., 64", "correlated, 16", "mixed, 64", "clean, correlated, 16")
VARIANTS: dict[str, dict[str, Any]] = {
    "the default": {},
    "frames are not corrected": {"own_depth": 0.0},
    "frames are corrected from twice the usual distance": {"own_usual": 2.0},
    "no doubt: settling ends after 2.56 s": {"doubtful_seconds": 2.56},
    "frames are corrected from six times the usual distance": {"own_usual": 6.0},
    "frames are corrected in all layers": {"own_depth": 1.0},
    "changes are not noticed": {"alarm": 1e9, "unlike": 1e9, "level": 1e9},
    "all layers are watched": {
        "watch_depth": 1.0,
        "material": 0.022,
        "noise": 0.3,
        "unlike": 0.145,
    },
    "an alarm at nine times the usual innovation": {"alarm": 9.0},
    "the first layer remembers 20 s": {"window_seconds": 20.0},
    "deep layers remember 60 s, as the first does": {"prior_seconds": 60.0},
    "deep layers remember 600 s": {"prior_seconds": 600.0},
    "never at rest": {"material": 0.0},
}


def main() -> None:
    """Every variant on every stream."""
    parser = argparse.ArgumentParser(description="The default estimator without parts of it.")
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-ablation.json")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    world, seeds = worlds()[WORLD], SEEDS[: options.seeds]
    frozen = PolicySpec("frozen", "frozen")
    policies = (
        frozen,
        *(
            PolicySpec(name, "estimator", estimator="Restarting", parameters=parameters)
            for name, parameters in VARIANTS.items()
        ),
    )
    found: dict[str, dict[str, list[float]]] = {policy.name: {} for policy in policies}
    for stream in STREAMS:
        results = [
            run(
                continual(
                    world,
                    stream,
                    part="tune",
                    seed=seed,
                    policies=policies,
                    degradations=DESIGN_CORRUPTIONS,
                ),
                jobs=options.jobs,
            )
            for seed in seeds
        ]
        for policy in policies:
            found[policy.name][stream] = [one.mean_error(policy.name) for one in results]
        print(f"{stream} done", flush=True)
    rows = [
        [name, *(f"{100 * float(np.mean(errors[stream])):.1f}" for stream in STREAMS)]
        for name, errors in found.items()
    ]
    print(table(["error %", *STREAMS], rows))
    write(
        options.output,
        benchmark="adaptation.ablation",
        arguments={
            "seeds": seeds,
            "frames": DOMAIN_FRAMES,
            "severity": SEVERITY,
            "degradations": DESIGN_CORRUPTIONS,
            "configuration": configuration(),
            "estimator": repr(Restarting()),
        },
        environment=where,
        results=found,
        claims=[],
    )
    report([], written=options.output)


if __name__ == "__main__":
    main()
