"""Which layers to adapt: `python -m benchmarks.paper.which_layers`.

The BatchNorm layers are cut into groups by depth. Groups get the target's statistics one after the
other, from the shallowest to the deepest and from the deepest to the shallowest (the paper's figure
on the number of adapted blocks).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import nn

import streamadapt as sa
from benchmarks.paper.claims import Claim, Outcome, run
from benchmarks.paper.worlds import (
    World,
    batches,
    domain_indices,
    joined,
    norm_layers,
    right_answers,
)
from benchmarks.record import table
from streamadapt.replay.bootstrap import Interval, paired_interval

GROUPS = 6


def depth_groups(model: nn.Module, *, count: int = GROUPS) -> list[list[str]]:
    """BatchNorm layers by depth, in at most `count` groups of nearly the same size."""
    names = norm_layers(model)
    parts = np.array_split(np.arange(len(names)), min(count, len(names)))
    return [[names[i] for i in part] for part in parts]


def experiment(world: World, quick: bool) -> Outcome:
    """Error over the number of adapted groups, in both orders."""
    source = world.model()
    domains = world.domains[:2] if quick else world.domains
    labels = world.labels("test")
    targets = {name: world.images(name, "tune") for name in domains}
    tests = {name: world.images(name, "test") for name in domains}
    places = domain_indices(len(domains), len(labels))
    groups = depth_groups(source)

    def answers(adapted: list[list[str]]) -> np.ndarray:
        chosen = {name for group in adapted for name in group}
        parts = []
        for domain in domains:
            model = source
            if chosen:
                found = list(batches(targets[domain]))
                model = sa.adabn(source, found, layers=sorted(chosen))
            parts.append(right_answers(model, tests[domain], labels))
        return joined(parts)

    none, everything = answers([]), answers(groups)
    curves: dict[str, list[np.ndarray]] = {}
    for order, ordered in (("shallow first", groups), ("deep first", groups[::-1])):
        between = [answers(ordered[:count]) for count in range(1, len(groups))]
        curves[order] = [none, *between, everything]
    rows, entries = [], []
    for count in range(len(groups) + 1):
        cells = [f"{count} of {len(groups)}"]
        entry: dict[str, object] = {"groups": count}
        for order, curve in curves.items():
            difference = paired_interval([(curve[count], none, places)])
            error = float(1 - curve[count].mean())
            cells += [f"{100 * error:.1f}", _points(difference) if count else ""]
            entry[order] = {
                "error": error,
                "difference": [difference.low, difference.estimate, difference.high],
            }
        rows.append(cells)
        entries.append(entry)
    claims = [Claim("all layers beat none", paired_interval([(everything, none, places)]))]
    for order, curve in curves.items():
        steps = [
            paired_interval([(after, before, places)]).estimate for before, after in pairwise(curve)
        ]
        entries.append({"order": order, "steps_that_help": int(np.sum(np.array(steps) < 0))})
        half = len(groups) // 2
        claims.append(
            Claim(
                f"{order}: all layers beat half of them",
                paired_interval([(everything, curve[half], places)]),
            )
        )
        claims.append(
            Claim(
                f"{order}: half of the layers beat none",
                paired_interval([(curve[half], none, places)]),
            )
        )
    header = ["groups adapted"]
    for order in curves:
        header += [order, "against none"]
    results = {"groups": groups, "curve": entries}
    return Outcome(table(header, rows), results, claims)


def _points(one: Interval) -> str:
    return f"{100 * one.estimate:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def main() -> int:
    """Run it."""
    return run(
        "which-layers",
        "Which layers to adapt.",
        experiment,
        default=("digits", "cifar10-resnet20", "imagenet-mobilenetv2"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
