"""Which layers to adapt: `python -m benchmarks.paper.which_layers`.

The BatchNorm layers are cut into groups by depth. Groups get the target's statistics one after the
other, from the shallowest to the deepest and from the deepest to the shallowest (the paper's figure
on the number of adapted blocks).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

import streamadapt as sa
from benchmarks.paper.claims import Claim, Outcome, Table, percent, points, run, values
from benchmarks.paper.worlds import (
    World,
    batches,
    domain_indices,
    joined,
    norm_layers,
    right_answers,
)
from streamadapt.replay.bootstrap import paired_interval

GROUPS = 6
ORDERS = ("shallow first", "deep first")


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
    for order, ordered in zip(ORDERS, (groups, groups[::-1]), strict=True):
        between = [answers(ordered[:count]) for count in range(1, len(groups))]
        curves[order] = [none, *between, everything]
    entries: list[dict[str, object]] = []
    for count in range(len(groups) + 1):
        entry: dict[str, object] = {"groups": count}
        for order, curve in curves.items():
            difference = paired_interval([(curve[count], none, places)])
            entry[order] = {
                "error": float(1 - curve[count].mean()),
                "difference": values(difference),
            }
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
    results = {"groups": groups, "curve": entries}
    return Outcome(results, claims)


def tables(results: dict[str, Any]) -> list[Table]:
    """Error over the number of adapted groups."""
    total = len(results["groups"])
    entries = [entry for entry in results["curve"] if "groups" in entry]
    rows = []
    for entry in entries:
        cells = [f"{entry['groups']} of {total}"]
        for order in ORDERS:
            one = entry[order]
            cells += [percent(one["error"]), points(one["difference"]) if entry["groups"] else ""]
        rows.append(cells)
    header = ["groups adapted"]
    for order in ORDERS:
        header += [f"{order}, error %", "against none, points (95 %)"]
    return [Table(header, rows)]


def main() -> int:
    """Run it."""
    return run(
        "which-layers",
        "Which layers to adapt.",
        experiment,
        tables,
        default=("digits", "cifar10-resnet20", "imagenet-mobilenetv2"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
