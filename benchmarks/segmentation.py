"""The segmentation example in numbers: `python -m benchmarks.segmentation`.

Mean IoU of `examples/segmentation` in eight worlds: frozen, adapted as it comes, with a profile and
with a shorter memory of late layers, and AdaBN over each whole world, which no stream can have.
Writes the JSON and a picture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import streamadapt as sa
from benchmarks.record import RESULTS, Claim, environment, markdown, report, table, write
from examples.scenes import CLASSES, SEED, WORLDS, cameras, scenes
from examples.segmentation.network import PREPARE, load
from examples.segmentation.run import adapted, frozen, iou

PICTURE = RESULTS.parent.parent / "docs" / "images" / "segmentation.png"
FRAMES = 600  # of each camera
WARM_UP = 100
SOURCE_FRAMES = 512  # of the profile
PRIOR_SECONDS = 20  # looked at after the default's result was known, on the same streams
GAIN, LOSS = 0.10, 0.01

_NAMES = ("clean", *(f"{name.replace('_', ' ')}, {severity}" for name, severity in WORLDS[1:]))
Scores = Mapping[str, Sequence[Mapping[str, float]]]


def batches(pictures: NDArray[np.uint8]) -> list[Tensor]:
    """What the model takes, 50 frames each."""
    return list(torch.stack([PREPARE(one) for one in pictures]).split(50))


def profile(model: nn.Module) -> sa.SourceProfile:
    """Of fresh scenes, as in training."""
    return sa.calibrate(model, batches(scenes(SOURCE_FRAMES, seed=SEED).pictures))


def adabn(model: nn.Module, pictures: NDArray[np.uint8]) -> nn.Module:
    """The model with the statistics of a whole camera."""
    return sa.adabn(model, batches(pictures), method="layerwise")


def claims_of(scores: Scores, *, of: str) -> list[Claim]:
    """What adapting gains where the world is degraded, and costs where it is clean."""
    claims = []
    for key, words in (("all", "all frames"), ("settled", f"after the first {WARM_UP}")):
        gains = [a[key] - f[key] for a, f in zip(scores["adapted"], scores["frozen"], strict=True)]
        text = f"mean gain in {of} over the degraded cameras, {words}"
        claims.append(Claim.at_least(text, float(np.mean(gains[1:])), GAIN))
        claims.append(Claim.at_most(f"loss in {of} of the clean camera, {words}", -gains[0], LOSS))
    return claims


def rows_of(scores: Scores, *, settled: Sequence[str] = ("adapted",)) -> list[list[str]]:
    """A line for each camera and their mean, a cell for each way over all frames, and for some
    after the first hundred."""
    ways = [(kind, "all") for kind in scores] + [(kind, "settled") for kind in settled]
    cells = [[one[key] for one in scores[kind]] for kind, key in ways]
    rows = [[name, *(f"{one[k]:.3f}" for one in cells)] for k, name in enumerate(_NAMES)]
    return [*rows, ["mean of the degraded", *(f"{np.mean(one[1:]):.3f}" for one in cells)]]


def mistakes(found: Any, truth: Any) -> dict[str, float]:
    """Shares of pixels: ground taken for a shape, shapes for ground, and for another kind."""
    ground, shape = truth == 0, truth > 0
    return {
        "added": float((found > 0)[ground].mean()),
        "missed": float((found == 0)[shape].mean()),
        "mistaken": float(((found != truth) & (found > 0))[shape].mean()),
    }


def header_of(scores: Scores, *, of: str) -> list[str]:
    """Of `rows_of`."""
    return [of, *scores, f"adapted, after {WARM_UP}"]


def segmentation() -> str:
    """Mean IoU of the example."""
    content: dict[str, Any] = json.loads((RESULTS / "segmentation.json").read_text())
    scores, given = content["results"]["scores"], content["arguments"]
    return markdown(header_of(scores, of="mean IoU"), rows_of(scores)) + (
        f"\n\n{given['frames']} new scenes a camera, one of each camera in every batch, 25 a "
        f"second; {content['results']['parameters']:,} parameters. AdaBN saw each camera's frames "
        "whole before it answered: a bound, not a rival. The shorter memory was tried on these "
        "streams, after the default."
    )


def kinds_of_mistakes() -> str:
    """What goes wrong with pixels, frozen and adapted."""
    content: dict[str, Any] = json.loads((RESULTS / "segmentation.json").read_text())
    found = content["results"]["mistakes"]
    header = ["frozen → adapted, %", "ground taken for a shape", "shape for ground", "for another"]
    pairs = zip(_NAMES, found["frozen"], found["adapted"], strict=True)
    rows = [
        [name, *(f"{100 * before[key]:.1f} → {100 * after[key]:.1f}" for key in before)]
        for name, before, after in pairs
    ]
    return markdown(header, rows)


def detection() -> str:
    """Average precision of the detection example."""
    content: dict[str, Any] = json.loads((RESULTS / "detection-example.json").read_text())
    scores, given = content["results"]["scores"], content["arguments"]
    return markdown(header_of(scores, of="AP at IoU 0.5"), rows_of(scores)) + (
        f"\n\nThe same cameras, {given['frames']} frames each, "
        f"{content['results']['parameters']:,} parameters, "
        f"{content['results']['frozen_layers']} frozen BatchNorms; mean over the three classes."
    )


SECTIONS = {
    "segmentation": segmentation,
    "segmentation-mistakes": kinds_of_mistakes,
    "detection-example": detection,
}


def picture(given: Any, masks: Mapping[str, Any], *, index: int) -> Any:
    """A line for each camera: one frame, what was drawn, and what was found."""
    from PIL import Image, ImageDraw

    side, gap, top, left = 112, 6, 20, 104
    colours = np.array([[235, 235, 235], [213, 94, 0], [0, 114, 178], [0, 158, 115]], np.uint8)
    canvas = Image.new(
        "RGB", (left + 4 * (side + gap), top + len(given) * (side + gap)), (255, 255, 255)
    )
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(("camera", *masks)):
        draw.text((left + column * (side + gap), 4), title, fill=(30, 30, 30))
    for k, name in enumerate(_NAMES):
        above = top + k * (side + gap)
        draw.text((4, above + side // 2 - 6), name, fill=(30, 30, 30))
        shown = [given[k, index], *(colours[one[k][index]] for one in masks.values())]
        for column, one in enumerate(shown):
            tile = Image.fromarray(one).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + column * (side + gap), above))
    return canvas.quantize(128, dither=Image.Dither.NONE)


def main() -> None:
    """Measures, prints a table, writes the JSON and the picture."""
    parser = argparse.ArgumentParser(description="Mean IoU in eight worlds.")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each camera")
    parser.add_argument("--output", type=Path, default=RESULTS / "segmentation.json")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    where, model = environment(), load()
    given, drawn = cameras(options.frames)
    found = {
        "frozen": [frozen(model, own) for own in given],
        "adapted": adapted(model, given),
        "with a profile": adapted(model, given, profile=profile(model)),
        f"`prior_seconds={PRIOR_SECONDS}`": adapted(
            model, given, estimator=sa.estimators.Restarting(prior_seconds=PRIOR_SECONDS)
        ),
        "AdaBN": [frozen(adabn(model, own), own) for own in given],
    }
    scores = {
        kind: [
            {
                key: float(iou(one[skip:], true.masks[skip:]).mean())
                for key, skip in (("all", 0), ("settled", WARM_UP))
            }
            for one, true in zip(masks, drawn, strict=True)
        ]
        for kind, masks in found.items()
    }
    print(table(header_of(scores, of="mean IoU"), rows_of(scores)))
    claims = claims_of(scores, of="mean IoU")
    shown = {
        "drawn": [one.masks for one in drawn],
        "frozen": found["frozen"],
        "adapted": found["adapted"],
    }
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    picture(given, shown, index=options.frames - 1).save(options.picture, optimize=True)
    write(
        options.output,
        benchmark="segmentation",
        arguments={"seed": SEED, "frames": options.frames, "warm_up": WARM_UP},
        environment=where,
        results={
            "worlds": [list(one) for one in WORLDS],
            "classes": list(CLASSES),
            "parameters": sum(one.numel() for one in model.parameters()),
            "scores": scores,
            "mistakes": {
                kind: [
                    mistakes(np.asarray(one), true.masks)
                    for one, true in zip(found[kind], drawn, strict=True)
                ]
                for kind in ("frozen", "adapted")
            },
        },
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
