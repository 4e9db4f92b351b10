"""Eight cameras in one batch: `python -m benchmarks.cameras.mixed`.

CIFAR-10, ResNet-20. Each camera shows pictures, no picture twice, in an order of its own through a
degradation of its own, fixed by the seed, one frame in every batch of eight, 25 a second. Three
processors get the same batches: with a row of statistics for each camera, with one that all share,
and frozen. Error is over all frames after the first hundred of each camera, and over all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import streamadapt as sa
from benchmarks.models import cifar_images, load_cifar_resnet
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from examples.scenes import SEED, WORLDS
from streamadapt.pipeline import Preprocess
from streamadapt.replay.corruptions import corrupt

FRAMES = 2000  # of each camera
WARM_UP = 100
GAIN = 0.10


def pictures() -> tuple[Any, Any]:
    """Of each camera: uint8 `[8, FRAMES, 32, 32, 3]`, and labels `[8, FRAMES]`."""
    x, y = cifar_images()
    rng = np.random.default_rng(SEED)
    chosen = np.stack([rng.permutation(len(x))[:FRAMES] for _ in WORLDS])
    shown = [
        corrupt(x[own], name, severity=severity, rng=rng)
        for own, (name, severity) in zip(chosen, WORLDS, strict=True)
    ]
    return np.stack(shown), y[chosen]


def answers(given: Any, *, rows: int | None) -> Any:
    """Classes `[8, FRAMES]` of a processor with so many rows; None: of the frozen model."""
    model, prepare = load_cifar_resnet(20), Preprocess.parse("normalize=imagenet")
    names = [f"camera-{k}" for k in range(len(WORLDS))]
    found = np.zeros(given.shape[:2], np.int64)
    with sa.StreamProcessor(
        model,
        max_streams=rows or 1,
        estimator=sa.estimators.Frozen() if rows is None else None,
    ) as processor:
        if rows is None or rows == 1:
            with torch.inference_mode():
                for index in range(given.shape[1]):
                    batch = torch.stack([prepare(one) for one in given[:, index]])
                    stamps = [index / 25 + k / 25 / len(names) for k in range(len(names))]
                    found[:, index] = processor(batch, pts_seconds=stamps).argmax(1).numpy()
            return found
        sources = [
            sa.frames.open(own, stream_id=name, fps=25)
            for name, own in zip(names, given, strict=True)
        ]
        pipeline = sa.Pipeline(sources, processor, preprocess=prepare, max_batch=len(names))
        for result in pipeline:
            for frame, output in result:
                camera = names.index(str(frame.stream_id))
                found[camera, frame.frame_id] = int(output.argmax())
    return found


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description="Error of eight cameras in one batch.")
    parser.add_argument("--output", type=Path, default=RESULTS / "cameras-mixed.json")
    options = parser.parse_args()
    where = environment()
    given, labels = pictures()
    kinds = {"frozen": None, "one shared row": 1, "a row a camera": len(WORLDS)}
    wrong = {name: answers(given, rows=rows) != labels for name, rows in kinds.items()}
    errors = {
        name: {
            "all": float(one.mean()),
            "settled": float(one[:, WARM_UP:].mean()),
            "cameras": one[:, WARM_UP:].mean(axis=1).tolist(),
        }
        for name, one in wrong.items()
    }
    rows = [
        [f"{name}, severity {severity}", *(f"{100 * e['cameras'][k]:.1f}" for e in errors.values())]
        for k, (name, severity) in enumerate(WORLDS)
    ]
    rows.append(["all", *(f"{100 * e['settled']:.1f}" for e in errors.values())])
    rows.append(["with the first hundred", *(f"{100 * e['all']:.1f}" for e in errors.values())])
    print(table(["error, %", *kinds], rows))
    claims = []
    for key, words in (("settled", f"after the first {WARM_UP} frames"), ("all", "all frames")):
        gain = errors["one shared row"][key] - errors["a row a camera"][key]
        text = f"error with one shared row less error with a row a camera, {words}"
        claims.append(Claim.at_least(text, gain, GAIN))
    write(
        options.output,
        benchmark="cameras-mixed",
        arguments={"seed": SEED, "frames": FRAMES, "warm_up": WARM_UP},
        environment=where,
        results={"cameras": [list(one) for one in WORLDS], "errors": errors},
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
