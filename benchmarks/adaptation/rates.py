"""Batch sizes and frame rates in camera time: `python -m benchmarks.adaptation.rates`.

A camera looks at each picture for a fifth of a second. At 25 frames a second it shows it five times
in a row, at 5 once; the domains take equally long. Whatever the rate and the batch size, the
default estimator should end alike.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.adaptation.continual import configuration
from benchmarks.lab.continual import CLEAN, DEGRADATIONS, SEVERITY
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
from streamadapt.estimators import Restarting
from streamadapt.replay.corruptions import corrupt
from streamadapt.replay.one_thread import keep_freed_memory
from streamadapt.replay.split import Split

PICTURES = 256  # a domain: 51 seconds
PICTURE_SECONDS = 0.2
FRAMES_PER_SECOND = (5, 25)
BATCH_SIZES = (1, 4, 16)
SEEDS = (0, 1, 2, 3, 4)
WITHIN = 1.0  # points

Setting = tuple[int, int]


def pictures(domain: str, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures of a domain from the test part, shuffled, and their classes."""
    images, labels = cifar_images()
    part = Split.load(worlds()["cifar10-resnet20"].split).part("test")
    rng = np.random.default_rng([seed, (CLEAN, *DEGRADATIONS).index(domain)])
    chosen = rng.permutation(part)[:PICTURES]
    shown = images[chosen]
    if domain != CLEAN:
        shown = corrupt(shown, domain, severity=SEVERITY, rng=rng)
    return normalize(shown, mean=IMAGENET_MEAN, std=IMAGENET_STD), torch.from_numpy(labels[chosen])


def error_of(setting: Setting, seed: int) -> float:
    """Mean error over all domains, one after the other."""
    rate, batch_size = setting
    torch.set_num_threads(1)
    keep_freed_memory()
    repeats, shown, errors = round(rate * PICTURE_SECONDS), 0, []
    with StreamProcessor(load_cifar_resnet(20).eval()) as processor, torch.no_grad():
        for domain in (CLEAN, *DEGRADATIONS):
            frames, labels = (
                one.repeat_interleave(repeats, dim=0) for one in pictures(domain, seed)
            )
            wrong = []
            for batch, truth in zip(
                frames.split(batch_size), labels.split(batch_size), strict=True
            ):
                stamps = [(shown + k) / rate for k in range(len(batch))]
                shown += len(batch)
                scores = processor(batch, pts_seconds=stamps)
                wrong.append((scores.argmax(1) != truth).float())
            errors.append(float(torch.cat(wrong).mean()))
    return float(np.mean(errors))


def main() -> None:
    """Every rate with every batch size."""
    parser = argparse.ArgumentParser(description="Camera time: rates and batch sizes.")
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-rates.json")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    seeds = SEEDS[: options.seeds]
    settings = list(product(FRAMES_PER_SECOND, BATCH_SIZES))
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running = {
            (setting, seed): pool.submit(error_of, setting, seed)
            for setting in settings
            for seed in seeds
        }
        errors = {key: future.result() for key, future in running.items()}
    found = [
        {
            "frames_per_second": rate,
            "batch_size": size,
            "error_by_seed": [errors[(rate, size), seed] for seed in seeds],
            "error": float(np.mean([errors[(rate, size), seed] for seed in seeds])),
        }
        for rate, size in settings
    ]
    means = [100 * float(one["error"]) for one in found]  # type: ignore[arg-type]
    rows = [
        [str(one["frames_per_second"]), str(one["batch_size"]), f"{error:.2f}"]
        for one, error in zip(found, means, strict=True)
    ]
    print(table(["frames a second", "batch size", "error %"], rows))
    judged = [Claim.at_most("largest less smallest error, points", max(means) - min(means), WITHIN)]
    write(
        options.output,
        benchmark="adaptation.rates",
        arguments={
            "pictures": PICTURES,
            "seeds": seeds,
            "configuration": configuration(),
            "estimator": repr(Restarting()),
            "severity": SEVERITY,
        },
        environment=where,
        results={"settings": found},
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
