"""Is the paper's hypothesis true? `python -m benchmarks.paper.hypothesis`.

"Label related knowledge is stored in the weight matrix of each layer, domain related knowledge is
represented by the statistics of BatchNorm" (arXiv 1603.04779, section 3): four experiments on it.
"""

from __future__ import annotations

from benchmarks.paper import divergence, gap, probes, swaps
from benchmarks.paper.claims import Outcome, run
from benchmarks.paper.worlds import World

PARTS = {
    "probes": probes.experiment,
    "swaps": swaps.experiment,
    "divergence": divergence.experiment,
    "gap": gap.experiment,
}


def experiment(world: World, quick: bool) -> Outcome:
    """All four, one after the other."""
    found = {name: part(world, quick) for name, part in PARTS.items()}
    return Outcome(
        "\n\n".join(one.table for one in found.values()),
        {name: one.results for name, one in found.items()},
        [claim for one in found.values() for claim in one.claims],
    )


def main() -> int:
    """Run it."""
    return run(
        "hypothesis",
        "Do statistics hold the domain and weights the label?",
        experiment,
        default=("digits", "cifar10-resnet20"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
