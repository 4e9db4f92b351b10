"""Which part of a network carries the domain? Statistics, affine parameters and weights swapped.

One network is trained in the source, its twin goes on in a target domain with that domain's labels.
Every mixture of the two networks' BatchNorm statistics, BatchNorm affine parameters and other
weights then reads images of both domains.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import streamadapt as sa
from benchmarks.paper.claims import Claim, Outcome, Table, percent
from benchmarks.paper.worlds import (
    World,
    batches,
    domain_indices,
    joined,
    norm_layers,
    right_answers,
)
from streamadapt.replay.bootstrap import Interval, paired_interval

PARTS = ("statistics", "affine", "weights")
STEPS = 80
BATCH = 64
LEARNING_RATE = 1e-2
LARGEST_GRADIENT = 1.0
DOMAINS = 4


def labelled_fine_tune(
    model: nn.Module,
    images: Tensor,
    labels: NDArray[np.int64],
    *,
    only: Sequence[str] | None = None,
    fixed_statistics: bool = False,
    steps: int = STEPS,
    seed: int = 0,
) -> nn.Module:
    """A copy trained on with labels, then with the statistics of those images.

    Args:
        model: to start from, in evaluation mode; not changed.
        images: `[N, 3, H, W]`.
        labels: `[N]`.
        only: names of the parameters to train; None trains all.
        fixed_statistics: train and end with the statistics of `model`. Otherwise each batch has its
            own in training and the result has those of `images`, under the weights that it ends
            with.
        steps: of stochastic gradient descent, at a rate that falls to zero.
        seed: of the batches.
    """
    tuned = copy.deepcopy(model).eval()
    parameters = dict(tuned.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(only is None or name in only)
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    for name in norm_layers(tuned):
        tuned.get_submodule(name).train(not fixed_statistics)
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.from_numpy(labels)
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        loss = F.cross_entropy(tuned(images[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
    tuned.eval().requires_grad_(False)
    return tuned if fixed_statistics else sa.adabn(tuned, list(batches(images)))


def mixed(one: nn.Module, other: nn.Module, *, from_other: Sequence[str]) -> nn.Module:
    """A copy of `one` with some parts of `other`.

    Args:
        one: a network.
        other: its twin.
        from_other: of `PARTS`.
    """
    found = copy.deepcopy(one)
    theirs = other.state_dict()
    norms = set(norm_layers(one))

    def part(name: str) -> str:
        if name.rpartition(".")[0] not in norms:
            return "weights"
        return "affine" if name.endswith(("weight", "bias")) else "statistics"

    state = {
        name: theirs[name] if part(name) in from_other else value
        for name, value in one.state_dict().items()
    }
    found.load_state_dict(state)
    return found


def experiment(world: World, quick: bool) -> Outcome:
    """Error of every mixture in the target domain and in the source."""
    source = world.model()
    domains = world.domains[: 2 if quick else DOMAINS]
    steps = 3 if quick else STEPS
    labels = world.labels("test")
    clean = world.images("none", "test")
    places = domain_indices(len(domains), len(labels))
    choices = [
        tuple(part for part, taken in zip(PARTS, bits, strict=True) if taken)
        for bits in product((False, True), repeat=len(PARTS))
    ]
    there: dict[tuple[str, ...], list[NDArray[np.bool_]]] = {choice: [] for choice in choices}
    home: dict[tuple[str, ...], list[NDArray[np.bool_]]] = {choice: [] for choice in choices}
    for domain in domains:
        images, tests = world.images(domain, "tune"), world.images(domain, "test")
        twin = labelled_fine_tune(source, images, world.labels("tune"), steps=steps)
        for choice in choices:
            model = mixed(source, twin, from_other=choice)
            there[choice].append(right_answers(model, tests, labels))
            home[choice].append(right_answers(model, clean, labels))
    results = {}
    for choice in choices:
        name = " + ".join(choice) or "nothing"
        errors = [float(1 - joined(found[choice]).mean()) for found in (there, home)]
        results[name] = {"target": errors[0], "source": errors[1]}

    def difference(one: Sequence[str], other: Sequence[str]) -> Interval:
        return paired_interval([(joined(there[tuple(one)]), joined(there[tuple(other)]), places)])

    claims = [
        Claim(
            f"the target's statistics alone help more than its {name} alone",
            difference(["statistics"], [part]),
        )
        for part, name in (("affine", "affine parameters"), ("weights", "weights"))
    ]
    claims.append(
        Claim(
            "the target's weights and affine parameters without its statistics are worse than "
            "its statistics alone",
            difference(["affine", "weights"], ["statistics"]),
            below=False,
        )
    )
    return Outcome({"domains": list(domains), "steps": steps, "errors": results}, claims)


def tables(results: dict[str, Any]) -> list[Table]:
    """Error of every mixture."""
    header = ["taken from the target's network", "error % in the target", "error % in the source"]
    rows = [
        [name, percent(errors["target"]), percent(errors["source"])]
        for name, errors in results["errors"].items()
    ]
    return [Table(header, rows)]
