"""What AdaBN takes away of each degradation: `python -m benchmarks.adaptation.severities`.

CIFAR-10 with ResNet-20, every degradation at every severity, frozen beside AdaBN over the whole
domain: what there is to gain at all, and where nothing is.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models import (
    CIFAR_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    cifar_images,
    load_cifar_resnet,
)
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt.replay import (
    CORRUPTIONS,
    AdaBNPolicy,
    Domain,
    FrozenPolicy,
    LabelledData,
    Scenario,
    run,
)

SEVERITIES = (1, 2, 3, 4, 5)
IMAGES = 640
STRONG_ERROR = 0.5  # a degradation is strong where the frozen model is wrong at least so often


def names() -> list[str]:
    """All degradations."""
    return [name for name in CORRUPTIONS if name != "none"]


def one(severity: int) -> dict[str, list[float]]:
    """Error of both in each degradation."""
    torch.set_num_threads(1)
    scenario = Scenario(
        "CIFAR-10, ResNet-20",
        tuple(Domain(name, IMAGES, name, severity) for name in names()),
        batch_size=64,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    images, labels = cifar_images()
    data = LabelledData(images, labels, CIFAR_CLASSES)
    policies = [FrozenPolicy(), AdaBNPolicy()]
    result = run(scenario, model=load_cifar_resnet(20), data=data, policies=policies)
    return {name: list(result.error(name)) for name in ("frozen", "adabn")}


def claim(severity: int, errors: dict[str, list[float]]) -> Claim:
    """Of the error of strong degradations, AdaBN takes a third."""
    frozen, adabn = (np.array(errors[name]) for name in ("frozen", "adabn"))
    strong = frozen >= STRONG_ERROR
    share = 1 - adabn[strong].sum() / frozen[strong].sum() if strong.any() else math.nan
    text = f"severity {severity}: share of the error of {strong.sum()} strong degradations"
    return Claim.at_least(text, float(share), 1 / 3)


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="Frozen and AdaBN by severity.")
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-severities.json")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(one, SEVERITIES))
    rows = [
        [name, *(f"{100 * e['frozen'][k]:.1f} → {100 * e['adabn'][k]:.1f}" for e in found)]
        for k, name in enumerate(names())
    ]
    print(table(["error %, frozen → AdaBN", *map(str, SEVERITIES)], rows))
    results: dict[str, Any] = {
        "corruptions": names(),
        "severities": SEVERITIES,
        "images": IMAGES,
        **{policy: [errors[policy] for errors in found] for policy in ("frozen", "adabn")},
    }
    claims = [claim(severity, e) for severity, e in zip(SEVERITIES, found, strict=True)]
    write(
        options.output,
        benchmark="adaptation.severities",
        arguments={"strong_error": STRONG_ERROR},
        environment=where,
        results=results,
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
