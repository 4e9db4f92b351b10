"""Is the paper's hypothesis true? `python -m benchmarks.paper.hypothesis`.

"Label related knowledge is stored in the weight matrix of each layer, domain related knowledge is
represented by the statistics of BatchNorm" (arXiv 1603.04779, section 3): four experiments on it.
"""

from __future__ import annotations

from typing import Any

from benchmarks.paper import divergence, gap, probes, swaps
from benchmarks.paper.claims import Outcome, Table, run
from benchmarks.paper.worlds import World

PARTS = {"probes": probes, "swaps": swaps, "divergence": divergence, "gap": gap}


def experiment(world: World, quick: bool) -> Outcome:
    """All four, one after the other."""
    found = {name: part.experiment(world, quick) for name, part in PARTS.items()}
    return Outcome(
        {name: one.results for name, one in found.items()},
        [claim for one in found.values() for claim in one.claims],
    )


def tables(results: dict[str, Any]) -> list[Table]:
    """Those of all four."""
    return [table for name, part in PARTS.items() for table in part.tables(results[name])]


def main() -> int:
    """Run it."""
    return run(
        "hypothesis",
        "Do statistics hold the domain and weights the label?",
        experiment,
        tables,
        default=("digits", "cifar10-resnet20"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
