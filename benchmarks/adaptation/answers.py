"""What settling does to a model's answers: `python -m benchmarks.adaptation.answers`.

On images of the tune part and design corruptions: the mutual information of frame and answer after
settling on some frames, over that on the source's statistics, on the same frames. Below
seven tenths settling is refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.adaptation.continual import configuration
from benchmarks.lab.continual import CLEAN, SEVERITY
from benchmarks.lab.worlds import worlds
from benchmarks.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    cifar_images,
    load_cifar_resnet,
    normalize,
)
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt import StreamProcessor
from streamadapt.replay.corruptions import DESIGN_CORRUPTIONS, corrupt
from streamadapt.replay.split import Split

DRAWS = 8
ORDERS = {"shuffled, 64": (64, 10), "two classes, 16": (16, 2), "four classes, 64": (64, 4)}
"""Frames of a draw, and of how many classes they are."""

LEAST = 0.7


def information(scores: Tensor) -> float:
    """Mutual information of frame and answer, in nats."""
    p = scores.double().softmax(dim=1)
    marginal = torch.special.entr(p.mean(dim=0)).sum()
    return float(marginal - torch.special.entr(p).sum(dim=1).mean())


def main() -> None:
    """Every design corruption, shuffled and of few classes."""
    parser = argparse.ArgumentParser(description="Answers after settling beside the source's.")
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-answers.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = environment()
    where["hardware"]["torch_threads"] = 1
    images, labels = cifar_images()
    part = Split.load(worlds()["cifar10-resnet20"].split).part("tune")
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, Any]] = {}
    for domain in (CLEAN, *DESIGN_CORRUPTIONS):
        found[domain] = {}
        for order, (count, classes) in ORDERS.items():
            ratios = []
            for _ in range(DRAWS):
                shown = rng.choice(10, classes, replace=False)
                chosen = rng.permutation(part[np.isin(labels[part], shown)])[:count]
                spoilt = images[chosen]
                if domain != CLEAN:
                    spoilt = corrupt(spoilt, domain, severity=SEVERITY, rng=rng)
                frames = normalize(spoilt, mean=IMAGENET_MEAN, std=IMAGENET_STD)
                stamps = [k / 25 for k in range(len(frames))]
                model = load_cifar_resnet(20).eval()
                with torch.no_grad():
                    source = information(model(frames))
                    with StreamProcessor(model, timing="synchronous") as processor:
                        settled = information(processor(frames, pts_seconds=stamps))
                ratios.append(settled / source)
            found[domain][order] = {"least": min(ratios), "median": float(np.median(ratios))}
    rows = [
        [domain, *(f"{each[one]['median']:.2f} ({each[one]['least']:.2f})" for one in ORDERS)]
        for domain, each in found.items()
    ]
    print(table(["median ratio (least)", *ORDERS], rows))
    least = min(one["least"] for each in found.values() for one in each.values())
    judged = [Claim.at_least("least ratio of information, settled over source", least, LEAST)]
    write(
        options.output,
        benchmark="adaptation.answers",
        arguments={
            "draws": DRAWS,
            "severity": SEVERITY,
            "orders": {name: list(one) for name, one in ORDERS.items()},
            "configuration": configuration(),
        },
        environment=where,
        results=found,
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
