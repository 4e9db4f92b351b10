"""The paper's systems on one backbone: `python -m benchmarks.paper.systems`.

Frozen network; CORAL on the features before the head (Sun et al. 2016, arXiv 1511.05547); AdaBN;
both; Deep CORAL (Sun and Saenko 2016, arXiv 1607.01719) and Deep CORAL with AdaBN. The paper's
table compares CORAL and Deep CORAL on AlexNet with AdaBN on Inception-BN; here all have the same
network, images and split.

Deep CORAL fine-tunes the network on labelled source images with the loss `||C_s - C_t||_F^2 / 4d^2`
of the features added. The source images are those of the `tune` part: the original training set is
not at hand. So the same fine-tuning without that loss stands beside it. BatchNorm layers stay in
evaluation mode while it lasts, as they are in a deployed network. The weight of the loss is the
best by labels of target images that are not tested, which the other systems do without.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import streamadapt as sa
from benchmarks.paper.claims import Claim, Outcome, Table, percent, run
from benchmarks.paper.worlds import (
    World,
    batches,
    domain_indices,
    joined,
    right_answers,
)
from streamadapt.replay.bootstrap import Interval, paired_interval

FINE_TUNING_STEPS = 200
FINE_TUNING_BATCH = 64
LEARNING_RATE = 1e-2
LARGEST_GRADIENT = 1.0
WEIGHTS = (0.0, 10.0, 100.0)  # of the CORAL loss; 0 is the control
EVERY = {"cifar10-resnet20": 3}  # training is dear: every so many of the domains


def experiment(world: World, quick: bool) -> Outcome:
    """Error of every system in every domain."""
    source = world.model()
    domains = world.domains[:2] if quick else world.domains[:: EVERY.get(world.name, 1)]
    labels = world.labels("test")
    places = domain_indices(len(domains), len(labels))
    clean = world.images("none", "tune")
    clean_labels = torch.from_numpy(world.labels("tune"))
    answers: dict[str, list[NDArray[np.bool_]]] = {}
    weights = WEIGHTS[:2] if quick else WEIGHTS
    steps = 3 if quick else FINE_TUNING_STEPS
    chosen: list[float] = []
    for domain in domains:
        target, test = world.images(domain, "tune"), world.images(domain, "test")
        adapted = sa.adabn(source, list(batches(target)))
        tuned = {
            weight: fine_tuned(source, clean, clean_labels, target, weight=weight, steps=steps)
            for weight in weights
        }
        # By labelled target images, which nobody has: in favour of Deep CORAL, not of ours.
        best = max(
            (weight for weight in weights if weight > 0),
            key=lambda weight: right_answers(tuned[weight], target, world.labels("tune")).mean(),
        )
        chosen.append(best)
        calibrated = sa.alignment.Coral.calibrate(source, list(batches(clean)))
        systems = {
            "none": source,
            "CORAL": sa.alignment.coral(source, calibrated, list(batches(target))),
            "AdaBN": adapted,
            "AdaBN + CORAL": sa.alignment.coral(adapted, calibrated, list(batches(target))),
            "fine-tuning alone": tuned[0.0],
            "Deep CORAL": tuned[best],
            "Deep CORAL + AdaBN": sa.adabn(tuned[best], list(batches(target))),
        }
        for name, model in systems.items():
            answers.setdefault(name, []).append(right_answers(model, test, labels))
    whole = {name: joined(parts) for name, parts in answers.items()}
    return _outcome(whole, answers, domains, places, chosen)


def fine_tuned(
    source: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: Tensor,
    *,
    weight: float,
    steps: int,
    seed: int = 0,
) -> nn.Module:
    """Deep CORAL from the deployed weights; `weight` 0 leaves the alignment out.

    Args:
        source: the deployed network; not changed.
        images: labelled source images, `[N, 3, H, W]`.
        labels: theirs, `[N]`.
        target: unlabelled target images.
        weight: of the CORAL loss.
        steps: of gradient descent.
        seed: of the batches.
    """
    model = copy.deepcopy(source).eval()
    head = _head(model)
    features: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    try:
        for _ in range(steps):
            ours = torch.randint(len(images), (FINE_TUNING_BATCH,), generator=generator)
            theirs = torch.randint(len(target), (FINE_TUNING_BATCH,), generator=generator)
            features.clear()
            loss = F.cross_entropy(model(images[ours]), labels[ours])
            if weight:
                model(target[theirs])
                loss = loss + weight * coral_loss(features[0], features[1])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
    finally:
        handle.remove()
    return model


def coral_loss(source: Tensor, target: Tensor) -> Tensor:
    """`||C_s - C_t||_F^2 / (4 d^2)` of features `[N, d]`, with covariances over `N - 1`.

    Reference:
        Sun and Saenko 2016, arXiv 1607.01719, equation (1).
    """
    width = source.shape[1]
    difference = torch.cov(source.T) - torch.cov(target.T)
    return difference.square().sum() / (4 * width**2)


def _head(model: nn.Module) -> nn.Linear:
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return found[-1]


def _outcome(
    whole: dict[str, NDArray[np.bool_]],
    answers: dict[str, list[NDArray[np.bool_]]],
    domains: tuple[str, ...],
    places: NDArray[np.int64],
    chosen: list[float],
) -> Outcome:
    def difference(name: str, against: str) -> Interval:
        return paired_interval([(whole[name], whole[against], places)])

    claims = [
        Claim("CORAL is better than nothing", difference("CORAL", "none")),
        Claim("AdaBN is better than CORAL", difference("AdaBN", "CORAL")),
        Claim("AdaBN + CORAL is better than AdaBN", difference("AdaBN + CORAL", "AdaBN")),
        Claim("Deep CORAL is worse than CORAL", difference("Deep CORAL", "CORAL"), below=False),
        Claim(
            "Deep CORAL is better than its fine-tuning alone",
            difference("Deep CORAL", "fine-tuning alone"),
        ),
        Claim("Deep CORAL + AdaBN is better than AdaBN", difference("Deep CORAL + AdaBN", "AdaBN")),
    ]
    results = {
        "domains": list(domains),
        "deep_coral_weight": chosen,
        "errors": {
            name: {
                **{d: float(1 - part.mean()) for d, part in zip(domains, parts, strict=True)},
                "mean": float(1 - whole[name].mean()),
            }
            for name, parts in answers.items()
        },
    }
    return Outcome(results, claims)


def tables(results: dict[str, Any]) -> list[Table]:
    """Error of every system in every domain."""
    columns = [*results["domains"], "mean"]
    rows = [
        [name, *(percent(errors[column]) for column in columns)]
        for name, errors in results["errors"].items()
    ]
    return [Table(["error %", *columns], rows)]


def main() -> int:
    """Run it."""
    return run(
        "systems",
        "The paper's systems on one backbone.",
        experiment,
        tables,
        default=("digits", "cifar10-resnet20"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
