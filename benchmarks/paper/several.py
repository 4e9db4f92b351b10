"""Several targets, and several sources, at once: `python -m benchmarks.paper.several`.

Several targets: images of all domains arrive together. Each domain gets its own statistics (someone
knows which image is whose), or all share pooled ones.

Several sources (digits alone, where training is cheap): networks trained on one domain and on two,
then adapted to each of the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import streamadapt as sa
from benchmarks import make_digits
from benchmarks.paper.claims import Claim, Outcome, Table, percent, run
from benchmarks.paper.worlds import World, batches, domain_indices, joined, right_answers
from streamadapt.replay.bootstrap import Interval, paired_interval
from streamadapt.replay.corruptions import corrupt
from streamadapt.replay.digits import upscale

SEEDS = 3
SECOND_SOURCE = "fog"


def experiment(world: World, quick: bool) -> Outcome:
    """Both, where the world allows."""
    found = [several_targets(world, quick)]
    if world.name == "digits":
        found.append(several_sources(world, seeds=1 if quick else SEEDS, quick=quick))
    results: dict[str, object] = {}
    for one in found:
        results |= one.results
    return Outcome(
        results,
        [claim for one in found for claim in one.claims],
    )


def several_targets(world: World, quick: bool) -> Outcome:
    """Statistics of each domain, against those of all together."""
    source = world.model()
    domains = world.domains[:2] if quick else world.domains
    labels = world.labels("test")
    places = domain_indices(len(domains), len(labels))
    targets = {name: world.images(name, "tune") for name in domains}
    together = torch.cat(list(targets.values()))
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0))
    pooled = sa.adabn(source, list(batches(together[order])))
    answers: dict[str, list[NDArray[np.bool_]]] = {}
    for name in domains:
        test = world.images(name, "test")
        systems: dict[str, nn.Module] = {
            "none": source,
            "pooled statistics": pooled,
            "own statistics": sa.adabn(source, list(batches(targets[name]))),
        }
        for system, model in systems.items():
            answers.setdefault(system, []).append(right_answers(model, test, labels))
    whole = {name: joined(parts) for name, parts in answers.items()}

    def difference(one: str, other: str) -> Interval:
        return paired_interval([(whole[one], whole[other], places)])

    errors = {name: float(1 - found.mean()) for name, found in whole.items()}
    by_domain = {
        name: {d: float(1 - part.mean()) for d, part in zip(domains, parts, strict=True)}
        for name, parts in answers.items()
    }
    return Outcome(
        {
            "targets": {
                "domains": list(domains),
                "errors": {name: {**by_domain[name], "mean": errors[name]} for name in errors},
            }
        },
        [
            Claim(
                "pooled statistics are better than none", difference("pooled statistics", "none")
            ),
            Claim(
                "own statistics are better than pooled ones",
                difference("own statistics", "pooled statistics"),
            ),
        ],
    )


def several_sources(world: World, *, seeds: int, quick: bool) -> Outcome:
    """Networks trained on one domain or on two, adapted to each of the others."""
    images, every_label = make_digits.images_and_labels()
    rows = make_digits.split(every_label)[0][: 128 if quick else None]
    clear, clear_labels = upscale(images[rows]), every_label[rows]
    second = corrupt(
        clear, SECOND_SOURCE, severity=world.setting.severity, rng=np.random.default_rng(0)
    )
    sources = {
        "clear": (clear, clear_labels),
        f"clear + {SECOND_SOURCE}": (
            np.concatenate([clear, second]),
            np.concatenate([clear_labels, clear_labels]),
        ),
    }
    domains = [name for name in world.domains if name != SECOND_SOURCE][: 2 if quick else None]
    labels = world.labels("test")
    places = domain_indices(len(domains), len(labels))
    answers: dict[str, list[NDArray[np.bool_]]] = {}
    for seed in range(seeds):
        for name, (frames, targets) in sources.items():
            network = make_digits.train(frames, targets, seed=seed)
            plain, adapted = [], []
            for domain in domains:
                test = world.images(domain, "test")
                own = sa.adabn(network, list(batches(world.images(domain, "tune"))))
                plain.append(right_answers(network, test, labels))
                adapted.append(right_answers(own, test, labels))
            answers.setdefault(f"{name}, none", []).append(joined(plain))
            answers.setdefault(f"{name}, AdaBN", []).append(joined(adapted))

    def difference(one: str, other: str) -> Interval:
        pairs = zip(answers[one], answers[other], strict=True)
        return paired_interval([(found, rival, places) for found, rival in pairs])

    errors = {name: float(1 - np.mean(found)) for name, found in answers.items()}
    one, two = sources
    return Outcome(
        {"sources": {"domains": domains, "seeds": seeds, "errors": errors}},
        [
            Claim(
                "a second source helps a network that is not adapted",
                difference(f"{two}, none", f"{one}, none"),
            ),
            Claim(
                "AdaBN helps a network of two sources", difference(f"{two}, AdaBN", f"{two}, none")
            ),
            Claim(
                "AdaBN on one source is better than a second source",
                difference(f"{one}, AdaBN", f"{two}, none"),
            ),
        ],
    )


def tables(results: dict[str, Any]) -> list[Table]:
    """Error with several targets, and with several sources where there are."""
    targets = results["targets"]
    columns = [*targets["domains"], "mean"]
    rows = [
        [name, *(percent(errors[column]) for column in columns)]
        for name, errors in targets["errors"].items()
    ]
    found = [Table(["several targets, error %", *columns], rows)]
    if "sources" in results:
        errors = results["sources"]["errors"]
        rows = [[name, percent(error)] for name, error in errors.items()]
        found.append(Table(["trained on, adapted by", "error %"], rows))
    return found


def main() -> int:
    """Run it."""
    return run(
        "several",
        "Several targets, and several sources, at once.",
        experiment,
        tables,
        default=("digits", "cifar10-resnet20"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
