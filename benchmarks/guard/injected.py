"""Harm that is injected: `python -m benchmarks.guard.injected`.

CIFAR-10, ResNet-20, clean shuffled images of the test part in batches of 16. After a while 640
frames of something else come in: one frozen picture, pictures that were not normalised, or pictures
that move away little by little, within the clip of every update. Then the clean ones go on, under
statistics that do not fit them. Counted are the frames from there to the last stretch of 256 on
which the answers, beside the source's, are five points and more worse than they were before.
Beside the slow drift there is a fog that comes as slowly: what it does to statistics is right, and
nothing is to be taken back while it comes.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.adaptation.continual import configuration
from benchmarks.lab.worlds import worlds
from benchmarks.models import cifar_images, load_resnet20, normalize
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt import Guard, StreamProcessor
from streamadapt.estimators import EMA, Estimator
from streamadapt.events import Event, FramesRejected, GuardActed
from streamadapt.replay.split import Split

BATCH, BEFORE, INJECTED, AFTER = 16, 1024, 640, 2048
STRETCH, WORSE = 256, 0.05
SEEDS = (0, 1, 2)
POLICIES: dict[str, tuple[Estimator | None, Guard | None]] = {
    "EMA 0.02": (EMA(momentum=0.02), None),
    "EMA 0.02, guarded": (EMA(momentum=0.02), Guard()),
    "default": (None, None),
    "default, guarded": (None, Guard()),
}


def frozen_picture(frames: Tensor, share: float) -> Tensor:
    """The first picture of the injection, again and again."""
    return frames[:1].expand_as(frames).contiguous()


def not_normalised(frames: Tensor, share: float) -> Tensor:
    """Pixels from 0 to 255, as they come."""
    return 60.0 * frames + 115.0


def slow_drift(frames: Tensor, share: float) -> Tensor:
    """Contrast and colours that move further with every batch."""
    tilt = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    return (1.0 + 2.0 * share) * frames + 3.0 * share * tilt


def slow_fog(frames: Tensor, share: float) -> Tensor:
    """Less and less is seen through a bright haze, two thirds in the end."""
    seen = 1.0 - 2.0 / 3.0 * share
    return seen * frames + (1.0 - seen) * HAZE


HAZE = 2.0  # bright, in standard deviations of the pixels
INJECTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "a frozen picture": frozen_picture,
    "not normalised": not_normalised,
    "slow drift": slow_drift,
    "slow fog": slow_fog,
}


def one(injection: str, policy: str, seed: int) -> dict[str, Any]:
    """A stream: frames out of line after the injection, and what the guard did."""
    torch.set_num_threads(1)
    images, labels = cifar_images()
    part = Split.load(worlds()["cifar10-resnet20"].split).part("test")
    rng = np.random.default_rng([seed, 7])
    events: list[Event] = []
    estimator, guard = POLICIES[policy]
    source = load_resnet20().eval()
    processor = StreamProcessor(
        copy.deepcopy(source),
        estimator=estimator,
        guard=guard,
        alarms=None,
        on_event=events.append,
    )
    right: dict[str, list[Any]] = {"adapted": [], "source": []}
    held: Tensor | None = None
    ends = [0]
    with torch.no_grad():
        for start in range(0, BEFORE + INJECTED + AFTER, BATCH):
            chosen = rng.choice(part, BATCH, replace=False)
            frames = normalize(images[chosen])
            inside = start - BEFORE
            if 0 <= inside < INJECTED:
                if injection == "a frozen picture":
                    held = frames if held is None else held
                    frames = held
                frames = INJECTIONS[injection](frames, inside / INJECTED)
            output = processor(frames, pts_seconds=(start + BATCH) / 25)
            ends.append(start + BATCH)
            right["adapted"].append(output.argmax(1).numpy() == labels[chosen])
            right["source"].append(source(frames).argmax(1).numpy() == labels[chosen])
    gain = np.concatenate(right["adapted"]).astype(float) - np.concatenate(right["source"])
    usual = gain[BEFORE // 2 : BEFORE].mean()
    after = gain[BEFORE + INJECTED :] - usual
    span = slice(BEFORE, BEFORE + INJECTED)
    acts = [(ends[e.step] - BEFORE, e.action) for e in events if isinstance(e, GuardActed)]
    since = [(frame, action) for frame, action in acts if frame > 0]
    starts = range(0, AFTER - STRETCH + 1, STRETCH // 4)
    worse = [k for k in starts if after[k : k + STRETCH].mean() <= -WORSE]
    return {
        "frames": worse[-1] + STRETCH if worse else 0,
        "mean_loss": -float(after[:512].mean()),
        "acts": dict(Counter(action for _, action in acts)),
        "flagged": next((frame for frame, action in since if action == "hold"), None),
        "taken_back_meanwhile": sum(
            action in ("rollback", "pin") for frame, action in since if frame <= INJECTED
        ),
        "gain_meanwhile": float(gain[span].mean()),
        "rejected": sum(e.frames for e in events if isinstance(e, FramesRejected)),
    }


def main() -> None:
    """Every injection and policy."""
    parser = argparse.ArgumentParser(description="The guard under injected harm.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "guard-injected.json")
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running = {
            (injection, policy): [pool.submit(one, injection, policy, seed) for seed in SEEDS]
            for injection in INJECTIONS
            for policy in POLICIES
        }
        results: dict[str, Any] = {}
        for (injection, policy), futures in running.items():
            found = [future.result() for future in futures]
            acts: Counter[str] = Counter()
            for each in found:
                acts.update(each["acts"])
            results.setdefault(injection, {})[policy] = {
                "frames": [each["frames"] for each in found],
                "mean_loss": float(np.mean([each["mean_loss"] for each in found])),
                "flagged": [each["flagged"] for each in found],
                "taken_back_meanwhile": sum(each["taken_back_meanwhile"] for each in found),
                "gain_meanwhile": float(np.mean([each["gain_meanwhile"] for each in found])),
                "acts": dict(acts),
                "rejected": sum(each["rejected"] for each in found),
            }
            print(injection, policy, results[injection][policy], flush=True)
    rows = [
        [f"{injection}: {policy}", str(max(row["frames"])), f"{100 * row['mean_loss']:.1f}"]
        for injection, each in results.items()
        for policy, row in each.items()
    ]
    print(table(["injection, policy", "frames out of line", "loss over 512 frames"], rows))
    claims = [
        Claim.at_most(
            f"{injection}: {policy}: frames out of line", max(each[policy]["frames"]), 500
        )
        for injection, each in results.items()
        for policy in POLICIES
        if "guarded" in policy
    ]
    poisoned = results["slow drift"]["EMA 0.02, guarded"]["flagged"]
    claims += [
        Claim.at_most(
            "slow drift: EMA 0.02, guarded: frames to the first hold",
            max(math.inf if one is None else one for one in poisoned),
            INJECTED + 500,
        ),
        *(
            Claim.at_most(
                f"slow fog: {policy}: taken back while it comes",
                results["slow fog"][policy]["taken_back_meanwhile"],
                0,
            )
            for policy in POLICIES
            if "guarded" in policy
        ),
    ]
    write(
        options.output,
        benchmark="guard.injected",
        arguments={
            "seeds": SEEDS,
            "batch": BATCH,
            "injected": INJECTED,
            "stretch": STRETCH,
            "configuration": configuration(),
        },
        environment=where,
        results=results,
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
