"""Where in a network the shift sits: `python -m benchmarks.adaptation.depth`.

CIFAR-10 with ResNet-20, images of the tune part, design corruptions at their strongest. Distance of
every layer's input from the source, in two ways: each layer measured with the layers before it put
right (AdaBN over the domain, layer by layer in one pass), and all measured under the source's
statistics, as a rule sees them that commits all layers at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lab.worlds import worlds
from benchmarks.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    cifar_images,
    load_cifar_resnet,
    normalize,
)
from benchmarks.record import RESULTS, environment, table, write
from streamadapt import Moments, StreamProcessor, adabn
from streamadapt.estimators import EMA
from streamadapt.moments import location_scale_distance
from streamadapt.replay.corruptions import DESIGN_CORRUPTIONS, corrupt
from streamadapt.replay.split import Split

IMAGES, SEVERITY = 320, 5


def put_right(model: nn.Module, frames: Tensor) -> list[float]:
    """Distances of AdaBN's statistics from the source, layer by layer."""
    adapted, out = dict(adabn(model, [frames]).named_modules()), []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            pair = [
                Moments(torch.zeros(1), one.running_mean.double(), one.running_var.double())
                for one in (layer, adapted[name])
            ]
            out.append(float(location_scale_distance(*pair, torch.tensor(layer.eps)).mean()))
    return out


def let_through(model: nn.Module, frames: Tensor) -> list[float]:
    """Distances as they are measured under the source's statistics."""
    with StreamProcessor(model, estimator=EMA(momentum=1.0)) as processor, torch.no_grad():
        processor(frames)
        return list(processor.drift().layers.values())


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="Distance from the source, by layer.")
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation-depth.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, _ = cifar_images()
    part = Split.load(worlds()["cifar10-resnet20"].split).part("tune")
    rng = np.random.default_rng(0)
    clean = images[rng.permutation(part)[:IMAGES]]
    found, rows = {}, []
    for name in ("none", *DESIGN_CORRUPTIONS):
        spoilt = corrupt(clean, name, severity=SEVERITY, rng=rng)
        frames = normalize(spoilt, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        found[name] = {
            "put_right": put_right(load_cifar_resnet(20).eval(), frames),
            "let_through": let_through(load_cifar_resnet(20).eval(), frames),
        }
        for way, values in found[name].items():
            parts = (values[0], values[1], np.mean(values[2:7]), np.mean(values[-10:]))
            rows.append([name, way, *(f"{value:.2f}" for value in parts)])
    print(table(["domain", "measured", "first", "second", "third to seventh", "last ten"], rows))
    write(
        options.output,
        benchmark="adaptation.depth",
        arguments={"images": IMAGES, "severity": SEVERITY},
        environment=environment(),
        results=found,
    )


if __name__ == "__main__":
    main()
