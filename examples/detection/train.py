"""Trains the detector of the example on clean scenes: `python -m examples.detection.train`.

With ordinary BatchNorms, which are frozen before it is saved. One thread and fixed seeds: the same
versions on the same kind of processor give the same bytes. The last step is kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.detection.average_precision import average_precision
from examples.detection.network import STRIDE, TYPICAL, WEIGHTS, Detector, frozen_copy
from examples.scenes import CLASSES, SIZE, Scenes, scenes
from examples.segmentation.train import pack, tensors

SEED = 0
SCENES = 8000
STEPS = 2500
BATCH_SIZE = 32
RATE = 4e-3


def targets(drawn: Scenes) -> tuple[Tensor, Tensor]:
    """Of every cell: its class, 0 for none, `[N, h, w]`, and its box's offsets `[N, 4, h, w]`."""
    side = SIZE // STRIDE
    classes = np.zeros((len(drawn), side, side), np.int64)
    offsets = np.zeros((len(drawn), 4, side, side), np.float32)
    for k, (boxes, labels) in enumerate(zip(drawn.boxes, drawn.labels, strict=True)):
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE
        columns, rows = np.floor(centres).astype(int).T
        classes[k, rows, columns] = labels  # of two in one cell the one in front
        offsets[k, :2, rows, columns] = centres - np.floor(centres) - 0.5
        offsets[k, 2:, rows, columns] = np.log((boxes[:, 2:] - boxes[:, :2]) / TYPICAL)
    return torch.from_numpy(classes), torch.from_numpy(offsets)


def loss(scores: Tensor, offsets: Tensor, classes: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of class scores and smooth L1 of boxes, per shape.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv:1708.02002.
    """
    one_hot = F.one_hot(classes, len(CLASSES))[..., 1:].permute(0, 3, 1, 2).float()
    entropy = F.binary_cross_entropy_with_logits(scores, one_hot, reduction="none")
    focal = (entropy * (1 - (-entropy).exp()) ** 2).sum()
    there = (classes > 0).unsqueeze(1)
    boxes = (F.smooth_l1_loss(offsets, wanted, beta=0.1, reduction="none") * there).sum()
    return (focal + boxes) / there.sum().clamp(min=1)


def train(*, count: int = SCENES, steps: int = STEPS, seed: int = SEED) -> Detector:
    """A detector trained on so many scenes, with BatchNorms, in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    detector = Detector(nn.BatchNorm2d)
    nn.init.constant_(detector.head[-1].bias[:-4], -4.0)  # most cells hold nothing
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    drawn = scenes(count, seed=seed)
    (pictures, _), (classes, wanted) = tensors(drawn), targets(drawn)
    for _ in range(steps):
        rows = torch.randint(count, (BATCH_SIZE,), generator=generator)
        found, boxes, mirrored = pictures[rows], wanted[rows], classes[rows]
        if torch.rand((), generator=generator) < 0.5:
            found, boxes, mirrored = found.flip(-1), boxes.flip(-1), mirrored.flip(-1)
            boxes[:, 0].neg_()
        if torch.rand((), generator=generator) < 0.5:
            found, boxes, mirrored = found.flip(-2), boxes.flip(-2), mirrored.flip(-2)
            boxes[:, 1].neg_()
        optimizer.zero_grad()
        loss(*detector.maps(found), mirrored, boxes).backward()
        optimizer.step()
        schedule.step()
    return detector.eval()


def main() -> None:
    """Trains, freezes, saves, and says what it scores on clean scenes that it has not seen."""
    parser = argparse.ArgumentParser(description="Train the detection example.")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    detector = frozen_copy(train(steps=options.steps))
    pack(detector, options.output)
    count = sum(one.numel() for one in detector.parameters())
    size = options.output.stat().st_size / 1000
    print(f"{count:,} parameters, {time.monotonic() - started:.0f} s, {size:.0f} kB")
    fresh = scenes(256, seed=SEED + 1)
    with torch.inference_mode():
        found = [one for part in tensors(fresh)[0].split(32) for one in detector(part)]
    truth = list(zip(fresh.boxes, fresh.labels, strict=True))
    for label, name in enumerate(CLASSES[1:], start=1):
        print(f"{name}: AP50 {average_precision(found, truth, label=label):.3f}")


if __name__ == "__main__":
    main()
