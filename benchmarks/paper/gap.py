"""How much is left to a labelled fine-tune, and at which depth?

Labels of the target's `tune` images train all parameters, the affine parameters of BatchNorm alone,
the head alone, or everything in one group of layers, with the target's statistics throughout. What
none of that gains, AdaBN has reached without a label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import streamadapt as sa
from benchmarks.paper.claims import Claim, Outcome, Table, percent, points, values
from benchmarks.paper.swaps import DOMAINS, STEPS, labelled_fine_tune
from benchmarks.paper.which_layers import depth_groups
from benchmarks.paper.worlds import (
    World,
    batches,
    domain_indices,
    joined,
    norm_layers,
    right_answers,
)
from streamadapt.replay.bootstrap import Interval, paired_interval

GROUPS = 3


def parameters_by_depth(model: nn.Module, *, count: int = GROUPS) -> list[list[str]]:
    """Names of parameters in groups of depth; each goes with the next BatchNorm layer.

    The head after the last such layer is in no group.
    """
    groups = depth_groups(model, count=count)
    place = {name: at for at, group in enumerate(groups) for name in group}
    found: list[list[str]] = [[] for _ in groups]
    waiting: list[str] = []
    for name, module in model.named_modules():
        waiting += [f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)]
        if name in place:
            found[place[name]] += waiting
            waiting = []
    return found


def experiment(world: World, quick: bool) -> Outcome:
    """Error of the deployed, the adapted and the fine-tuned networks."""
    source = world.model()
    domains = world.domains[: 2 if quick else DOMAINS]
    steps = 3 if quick else STEPS
    labels = world.labels("test")
    places = domain_indices(len(domains), len(labels))
    norms = set(norm_layers(source))
    depths = parameters_by_depth(source)
    grouped = {name for group in depths for name in group}
    every = [name for name, _ in source.named_parameters()]
    trained = {
        "affine of BatchNorm": [name for name in every if name.rpartition(".")[0] in norms],
        **{f"group {at + 1} of {len(depths)}": group for at, group in enumerate(depths)},
        "head": [name for name in every if name not in grouped],
        "everything": every,
    }
    answers: dict[str, list[NDArray[np.bool_]]] = {}
    for domain in domains:
        images, test = world.images(domain, "tune"), world.images(domain, "test")
        adapted = sa.adabn(source, list(batches(images)))
        systems = {"frozen": source, "AdaBN": adapted}
        for name, only in trained.items():
            systems[f"labels: {name}"] = labelled_fine_tune(
                source, images, world.labels("tune"), only=only, steps=steps
            )
        systems["labels, no AdaBN: everything"] = labelled_fine_tune(
            source, images, world.labels("tune"), fixed_statistics=True, steps=steps
        )
        for name, model in systems.items():
            answers.setdefault(name, []).append(right_answers(model, test, labels))
    whole = {name: joined(parts) for name, parts in answers.items()}

    def difference(one: str, other: str) -> Interval:
        return paired_interval([(whole[one], whole[other], places)])

    errors = {name: float(1 - found.mean()) for name, found in whole.items()}
    best = "labels: everything"
    span = errors["frozen"] - errors[best]
    closed = (errors["frozen"] - errors["AdaBN"]) / span if span > 0 else None
    claims = [
        Claim("labels for everything improve on AdaBN", difference(best, "AdaBN")),
        Claim(
            "AdaBN without labels is better than labels without AdaBN",
            difference("AdaBN", "labels, no AdaBN: everything"),
        ),
    ]
    results = {
        "domains": list(domains),
        "steps": steps,
        "errors": errors,
        "against_adabn": {name: values(difference(name, "AdaBN")) for name in whole},
        "gap_closed": closed,
    }
    return Outcome(results, claims)


def tables(results: dict[str, Any]) -> list[Table]:
    """Error of every system, and the share of the gap that AdaBN closes."""
    rows = []
    for name, error in results["errors"].items():
        against = "" if name == "AdaBN" else points(results["against_adabn"][name])
        rows.append([name, percent(error), against])
    if results["gap_closed"] is not None:
        rows.append(["gap closed by AdaBN, %", percent(results["gap_closed"]), ""])
    return [Table(["system", "error %", "against AdaBN, points (95 %)"], rows)]
