"""The reference networks are the published ones: their weights load, their accuracy is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.models import (
    Images,
    Labels,
    cifar_images,
    imagenet_images,
    load_cifar_resnet,
    load_mobilenet_v2,
    normalize,
)

pytestmark = pytest.mark.realdata


def accuracy(model: nn.Module, images: Images, labels: Labels, *, batch_size: int) -> float:
    with torch.inference_mode():
        hits = [
            model(normalize(images[i : i + batch_size])).argmax(1).numpy()
            == labels[i : i + batch_size]
            for i in range(0, len(images), batch_size)
        ]
    return float(np.concatenate(hits).mean())


@pytest.mark.parametrize(("depth", "expected"), [(20, 0.81), (56, 0.83)])
def test_cifar_resnets_reach_their_known_accuracy(
    data_dir: Path, depth: int, expected: float
) -> None:
    images, labels = cifar_images(data_dir)
    model = load_cifar_resnet(depth, data_dir)
    # 1,000 images: one standard error is 1.2 points.
    assert accuracy(model, images[::5], labels[::5], batch_size=100) == pytest.approx(
        expected, abs=0.035
    )


def test_mobilenet_v2_reaches_its_known_accuracy(data_dir: Path) -> None:
    images, labels = imagenet_images(data_dir, limit=167)
    assert images.shape == (167, 224, 224, 3)
    norms = [m for m in load_mobilenet_v2(data_dir).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 52
    assert accuracy(load_mobilenet_v2(data_dir), images, labels, batch_size=16) > 0.80


def test_weights_that_are_not_there_are_named(data_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="resnet14"):
        load_cifar_resnet(14, data_dir)
