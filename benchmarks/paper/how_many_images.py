"""How many target images AdaBN needs: `python -m benchmarks.paper.how_many_images`.

Statistics are taken from 1, 2, 4, ... images of a domain, drawn several times from a part that is
not tested, and put in place of the source's (one pass, section 3.2 of the paper), or mixed with
them as if the source were 16 images (Schneider et al. 2020, arXiv 2006.16971).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
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

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
REPEATS = 5
PRIOR_IMAGES = 16


def experiment(world: World, quick: bool) -> Outcome:
    """Error over the number of images, with and without the source as a prior."""
    repeats = 2 if quick else REPEATS
    source = world.model()
    domains = world.domains[:2] if quick else world.domains
    labels = world.labels("test")
    pool = {name: world.images(name, "tune") for name in domains}
    tests = {name: world.images(name, "test") for name in domains}
    frozen = joined([right_answers(source, tests[name], labels) for name in domains])
    places = domain_indices(len(domains), len(labels))
    sizes = [size for size in SIZES if size <= len(next(iter(pool.values())))]
    plain_by_size = {}
    results: dict[str, object] = {"frozen": float(1 - frozen.mean()), "sizes": []}
    entries: list[dict[str, object]] = []
    for size in sizes:
        answers: dict[str, list[np.ndarray]] = {"plain": [], "prior": []}
        for repeat in range(repeats):
            rng = np.random.default_rng([size, repeat])
            adapted: dict[str, list[np.ndarray]] = {"plain": [], "prior": []}
            for name in domains:
                chosen = torch.from_numpy(rng.permutation(len(pool[name]))[:size])
                target = sa.adabn(source, list(batches(pool[name][chosen])))
                adapted["plain"].append(right_answers(target, tests[name], labels))
                mixed = with_prior(source, target, images=size)
                adapted["prior"].append(right_answers(mixed, tests[name], labels))
            for kind, parts in adapted.items():
                answers[kind].append(joined(parts))
        intervals = {
            kind: paired_interval([(one, frozen, places) for one in found])
            for kind, found in answers.items()
        }
        errors = {kind: float(1 - np.mean(found)) for kind, found in answers.items()}
        plain_by_size[size] = intervals["plain"]
        entries.append(
            {
                "images": size,
                **{f"error_{kind}": value for kind, value in errors.items()},
                **{f"difference_{kind}": values(one) for kind, one in intervals.items()},
            }
        )
    results["sizes"] = entries
    enough = [size for size in sizes if all(plain_by_size[s].high < 0 for s in sizes if s >= size)]
    results["helps_from"] = min(enough) if enough else None
    claims = [
        Claim("one image hurts", plain_by_size[sizes[0]], below=False),
        Claim(f"{sizes[-1]} images help", plain_by_size[sizes[-1]]),
    ]
    return Outcome(results, claims)


def with_prior(source: nn.Module, target: nn.Module, *, images: int) -> nn.Module:
    """A copy whose statistics are both models', the source's counting as `PRIOR_IMAGES`."""
    mixed = copy.deepcopy(target)
    share = images / (images + PRIOR_IMAGES)
    with torch.no_grad():
        for name in norm_layers(source):
            before, after = source.get_submodule(name), mixed.get_submodule(name)
            for buffer in ("running_mean", "running_var"):
                getattr(after, buffer).lerp_(getattr(before, buffer), 1 - share)
    return mixed


def tables(results: dict[str, Any]) -> list[Table]:
    """Error over the number of images."""
    kinds = ("plain", "prior")
    rows = [["0", percent(results["frozen"]), "", percent(results["frozen"]), ""]]
    for entry in results["sizes"]:
        cells = [
            shown(entry[f"{what}_{kind}"])
            for kind in kinds
            for what, shown in (("error", percent), ("difference", points))
        ]
        rows.append([str(entry["images"]), *cells])
    against = "against frozen, points (95 %)"
    return [Table(["images", "AdaBN, error %", against, "with prior, error %", against], rows)]


def main() -> int:
    """Run it."""
    return run(
        "how-many-images",
        "How many target images AdaBN needs.",
        experiment,
        tables,
        default=("digits", "cifar10-resnet20", "imagenet-mobilenetv2"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
