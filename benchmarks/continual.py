"""The example that the README shows: how long it takes, and its picture.

    python -m benchmarks.continual [--output FILE]

Runs `streamadapt replay examples/continual.toml` as a user does. Writes
`benchmarks/results/continual.json` and `docs/replay.svg`. Exits 1 when it took two minutes or more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import record
from streamadapt.replay.report import Pool, headline, render_picture, to_dict
from streamadapt.replay.result import ReplayResult

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "replay.svg"
ALLOWED_SECONDS = 120.0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="The continual example, timed and drawn.")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "continual.json")
    arguments = parser.parse_args()
    environment = record.environment()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "streamadapt", "replay", "examples/continual.toml"]
        start = time.perf_counter()
        subprocess.run([*command, "--run-dir", folder], cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        result = ReplayResult.load(folder)
    PICTURE.write_text(render_picture(result), encoding="utf-8")
    pooled = Pool([result])
    print(headline(pooled))
    claims = [
        record.Claim.at_most("seconds, from start to report", seconds, ALLOWED_SECONDS),
    ]
    record.write(
        arguments.output,
        benchmark="continual",
        arguments={"cores": len(os.sched_getaffinity(0))},
        environment=environment,
        results={"seconds": seconds, "report": to_dict([pooled])},
        claims=claims,
    )
    record.report(claims, written=arguments.output)
    return 0 if all(claim.holds for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
