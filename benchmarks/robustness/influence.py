"""What one frame in eight can do to the others: `python -m benchmarks.robustness.influence`.

An attacker owns one frame of each batch of eight, for a hundred batches, sees everything (weights,
statistics, the other frames) and may send any picture. As in DIA, the picture is found by projected
gradient steps that raise the loss of its batch-mates under batch statistics; against the default
estimator the attacker also keeps it as near to the statistics in use as frames that count fully.
Then the attack ends, and clean frames of the same domain are scored under the statistics that it
left, beside those of a run in which the eighth frame was clean as well.

Reference:
    Wu et al., "Uncovering Adversarial Risks of Test-Time Adaptation", ICML 2023, arXiv:2301.12576.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.adaptation.continual import configuration, over_seeds
from benchmarks.lab.worlds import worlds
from benchmarks.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    cifar_images,
    load_cifar_resnet,
    normalize,
)
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt import Moments, StreamProcessor
from streamadapt.estimators import EMA, BatchStatistics, Estimator, Restarting
from streamadapt.moments import location_scale_distance
from streamadapt.replay.corruptions import corrupt
from streamadapt.replay.one_thread import keep_freed_memory
from streamadapt.replay.split import Split

BATCH, ATTACKED, WARM_UP, SCORED = 8, 100, 40, 1856
FIRST_STEPS, LATER_STEPS, EVERY = 500, 50, 10
STEP = 4 / 255
MARGIN = 0.9  # of the largest distance at which a frame still counts fully
SEEDS = (0, 1, 2, 3, 4)
DOMAINS = {"clean": ("none", 1), "fog": ("fog", 4)}
SYSTEMS: dict[str, tuple[Estimator, str]] = {
    "batch statistics": (BatchStatistics(), "synchronous"),
    "EMA 0.1": (EMA(momentum=0.1), "lagged"),
    "default": (Restarting(), "lagged"),
}


def frames_of(domain: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Frames of a domain from the test part, in random order, and their classes."""
    images, labels = cifar_images()
    part = Split.load(worlds()["cifar10-resnet20"].split).part("test")
    rng = np.random.default_rng([seed, 7])
    chosen = rng.permutation(part)[:count]
    name, severity = DOMAINS[domain]
    spoilt = corrupt(images[chosen], name, severity=severity, rng=rng)
    return normalize(spoilt, mean=IMAGENET_MEAN, std=IMAGENET_STD), torch.from_numpy(labels[chosen])


class Attacker:
    """Finds pictures against one model.

    Args:
        hidden: keep the picture among the frames that count fully.
    """

    def __init__(self, *, hidden: bool, seed: int) -> None:
        self._model = load_cifar_resnet(20).train()  # normalises by the batch's own statistics
        for module in self._model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
        self._watched = load_cifar_resnet(20).eval()
        self._hidden = hidden
        self._generator = torch.Generator().manual_seed(seed)
        self._inputs: list[Tensor] = []
        self._layers = [m for m in self._watched.modules() if isinstance(m, nn.BatchNorm2d)]
        for layer in self._layers:
            layer.register_forward_pre_hook(lambda _, x: self._inputs.append(x[0]))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        self._low, self._high = -mean / std, (1 - mean) / std
        self._step = STEP / std
        self._picture: Tensor | None = None

    def find(
        self, mates: Tensor, labels: Tensor, *, held: dict[str, Moments], steps: int
    ) -> Tensor:
        """The picture to send with `mates`, `[1, 3, H, W]`; begins at the last one found."""
        picture = self._picture
        if picture is None:
            start = torch.rand(mates[:1].shape, generator=self._generator)
            picture = self._low + start * (self._high - self._low)
        limit = self._limit(mates, held) if self._hidden else None
        for _ in range(steps):
            picture = picture.detach().requires_grad_(True)
            scores = self._model(torch.cat([mates, picture]))[:-1]
            gain = F.cross_entropy(scores, labels)
            if limit is not None:
                gain = gain - 10.0 * F.relu(self._distances(picture, held)[0] / limit - 1.0)
            (slope,) = torch.autograd.grad(gain, picture)
            picture = (picture + self._step * slope.sign()).clamp(self._low, self._high)
        self._picture = picture.detach()
        return self._picture

    def _limit(self, mates: Tensor, held: dict[str, Moments]) -> Tensor:
        with torch.no_grad():
            return MARGIN * 3.0 * self._distances(mates, held).median()

    def _distances(self, frames: Tensor, held: dict[str, Moments]) -> Tensor:
        self._inputs.clear()
        for layer, moments in zip(self._layers, held.values(), strict=True):
            layer.running_mean.copy_(moments.mean)
            layer.running_var.copy_(moments.var)
        self._watched(frames)
        apart = []
        for x, moments in zip(self._inputs, held.values(), strict=True):
            var, mean = torch.var_mean(x, dim=(2, 3), correction=0)
            seen = Moments(torch.ones_like(mean), mean, var)
            own = Moments(moments.count, moments.mean.float(), moments.var.float())
            apart.append(location_scale_distance(seen, own, torch.tensor(1e-5)).mean(dim=1))
        return torch.stack(apart).mean(dim=0)


def run(system: str, domain: str, seed: int, *, attacked: bool) -> dict[str, Any]:
    """Warm up, attack or not, and score what is left."""
    torch.set_num_threads(1)
    keep_freed_memory()
    estimator, timing = SYSTEMS[system]
    count = BATCH * (WARM_UP + ATTACKED) + SCORED
    frames, labels = frames_of(domain, seed, count)
    attacker = Attacker(hidden=system == "default", seed=seed) if attacked else None
    wrong_mates, phases = [], []
    with StreamProcessor(
        load_cifar_resnet(20).eval(),
        estimator=estimator,
        timing=timing,  # type: ignore[arg-type]
        on_event=lambda e: phases.append(type(e).__name__) if "Phase" in type(e).__name__ else None,
    ) as processor:
        for number in range(WARM_UP + ATTACKED):
            span = slice(number * BATCH, (number + 1) * BATCH)
            batch, truth = frames[span], labels[span]
            if attacker is not None and number >= WARM_UP:
                since = number - WARM_UP
                steps = FIRST_STEPS if since == 0 else LATER_STEPS if since % EVERY == 0 else 0
                picture = attacker.find(
                    batch[:-1], truth[:-1], held=processor.statistics(), steps=steps
                )
                batch = torch.cat([batch[:-1], picture])
            with torch.no_grad():
                stamps = [(number * BATCH + k) / 25 for k in range(BATCH)]
                scores = processor(batch, pts_seconds=stamps)
            if number >= WARM_UP:
                wrong_mates.append((scores[:-1].argmax(1) != truth[:-1]).float().mean())
        processor.freeze()
        later, truth = frames[-SCORED:], labels[-SCORED:]
        with torch.no_grad():
            if timing == "synchronous":  # it remembers nothing
                error = float("nan")
            else:
                error = float((processor(later).argmax(1) != truth).float().mean())
    return {"later": error, "mates": float(torch.stack(wrong_mates).mean()), "phases": len(phases)}


def summarise(pairs: Sequence[tuple[dict[str, Any], ...]]) -> dict[str, Any]:
    """Each figure without and with the attack, by seed, and by how much it rises."""
    found = {}
    for key in ("later", "mates", "phases"):
        quiet, attacked = ([each[way][key] for each in pairs] for way in (0, 1))
        raised = over_seeds(np.array(attacked) - np.array(quiet))
        found[key] = {"quiet": quiet, "attacked": attacked, "raised": raised}
    return found


def claims(found: dict[str, Any]) -> list[Claim]:
    """At most a tenth of what each rival's frames suffer; the interval's upper end counts."""

    def raised(row: dict[str, Any]) -> NDArray[np.float64]:
        return 100 * (np.array(row["attacked"]) - np.array(row["quiet"]))

    judged = []
    for domain, each in found.items():
        ours = raised(each["default"]["later"])
        for rival, key in (("batch statistics", "mates"), ("EMA 0.1", "later")):
            beyond = over_seeds(ours - raised(each[rival][key]) / 10)
            text = f"{domain}: later frames' rise less a tenth of {rival}'s, upper end, points"
            judged.append(Claim.at_most(text, beyond[2], 0.0))
    return judged


def main() -> None:
    """Attack every system in every domain."""
    parser = argparse.ArgumentParser(description="One frame in eight against the others.")
    parser.add_argument("--output", type=Path, default=RESULTS / "robustness-influence.json")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    seeds = SEEDS[: options.seeds]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running = {
            key: [pool.submit(run, *key, attacked=attacked) for attacked in (False, True)]
            for key in product(SYSTEMS, options.domains, seeds)
        }
        pairs = {}
        for key, both in running.items():
            quiet, hit = pairs[key] = tuple(one.result() for one in both)
            print(*key, f"quiet {quiet}", f"attacked {hit}", sep=", ", flush=True)
    found = {
        domain: {
            system: summarise([pairs[system, domain, seed] for seed in seeds]) for system in SYSTEMS
        }
        for domain in options.domains
    }
    rows = [
        [domain, system, *(f"{100 * one[key]['raised'][1]:+.2f}" for key in ("later", "mates"))]
        for domain, each in found.items()
        for system, one in each.items()
    ]
    print(table(["domain", "system", "later frames, points", "batch-mates, points"], rows))
    judged = claims(found)
    write(
        options.output,
        benchmark="robustness.influence",
        arguments={
            "seeds": seeds,
            "batch": BATCH,
            "attacked_batches": ATTACKED,
            "steps": [FIRST_STEPS, LATER_STEPS, EVERY],
            "configuration": configuration(),
            "estimator": repr(Restarting()),
        },
        environment=where,
        results=found,
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
