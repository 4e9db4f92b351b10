"""The demonstration over five seeds, and the picture in the README.

    python -m benchmarks.demo [--output FILE]

Writes `benchmarks/results/demo.json` and `docs/demo.svg` (seed 0). Exits 1 when a promise of the
demonstration is broken for any seed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import record
from streamadapt.replay.demo import run_demo
from streamadapt.replay.report import render_picture

SEEDS = range(5)
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "demo.svg"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="The demonstration over five seeds.")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "demo.json")
    arguments = parser.parse_args()
    environment = record.environment()
    seeds = []
    for seed in SEEDS:
        result = run_demo(seed=seed)
        if seed == 0:
            PICTURE.write_text(render_picture(result.replay), encoding="utf-8")
        seeds.append(
            {
                "seed": seed,
                "passed": result.passed,
                "phases": [{**asdict(phase), "gain": phase.gain} for phase in result.phases],
                "checks": [asdict(check) for check in result.checks],
            }
        )
        shown = "  ".join(
            f"{phase.name} {phase.frozen:.1f}->{phase.adapted:.1f}" for phase in result.phases
        )
        print(f"seed {seed}: {shown}", flush=True)
    gains = {
        name: min(
            phase["gain"] for seed in seeds for phase in seed["phases"] if phase["name"] == name
        )
        for name in ("clear", "fog", "night", "noise", "clear again")
    }
    claims = [
        record.Claim.at_least("smallest gain in fog, points", gains["fog"], 10.0),
        record.Claim.at_least("smallest gain at night, points", gains["night"], 10.0),
        record.Claim.at_least("smallest gain in the clear, points", gains["clear"], -1.0),
        record.Claim.at_least(
            "smallest gain in the clear again, points", gains["clear again"], -1.0
        ),
    ]
    record.write(
        arguments.output,
        benchmark="demo",
        arguments={"seeds": list(SEEDS)},
        environment=environment,
        results={"seeds": seeds},
        claims=claims,
    )
    record.report(claims, written=arguments.output)
    return 0 if all(claim.holds for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
