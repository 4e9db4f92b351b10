"""Trains the network of the example on clean scenes: `python -m examples.segmentation.train`.

One thread and fixed seeds: the same versions on the same kind of processor give the same bytes. The
last step is kept: nothing is picked by what it scores, and no degraded picture is looked at.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.scenes import CLASSES, Scenes, scenes
from examples.segmentation.network import WEIGHTS, SegmentationNetwork
from examples.segmentation.run import iou

SEED = 0
SCENES = 8000
STEPS = 900
BATCH_SIZE = 32
RATE = 4e-3


def tensors(drawn: Scenes) -> tuple[Tensor, Tensor]:
    """Pictures `[N, 3, H, W]` from -1 to 1, as `PREPARE` makes them, and masks `[N, H, W]`."""
    pictures = torch.from_numpy(drawn.pictures).permute(0, 3, 1, 2)
    return pictures.float().div_(127.5).sub_(1), torch.from_numpy(drawn.masks)


def batches(
    pictures: Tensor, masks: Tensor, *, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random ones, each turned and mirrored in one of eight ways."""
    for _ in range(steps):
        rows = torch.randint(len(pictures), (BATCH_SIZE,), generator=generator)
        way = int(torch.randint(8, (), generator=generator))
        x, y = (torch.rot90(one[rows], way % 4, (-2, -1)) for one in (pictures, masks))
        yield (x.flip(-1), y.flip(-1)) if way < 4 else (x, y)


def train(*, count: int = SCENES, steps: int = STEPS, seed: int = SEED) -> SegmentationNetwork:
    """A network trained on so many scenes, in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = SegmentationNetwork().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    pictures, masks = tensors(scenes(count, seed=seed))
    for x, y in batches(pictures, masks, steps=steps, generator=generator):
        optimizer.zero_grad()
        F.cross_entropy(network(x.contiguous(memory_format=torch.channels_last)), y).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def pack(network: nn.Module, path: Path) -> None:
    """Save weights: convolutions in half precision, vectors as they are."""
    stored = {
        name: (one.half() if one.dim() == 4 else one).contiguous()
        for name, one in network.state_dict().items()
    }
    save_file(stored, path, metadata={"format": "pt"})


def main() -> None:
    """Trains, saves, and says what it scores on clean scenes that it has not seen."""
    parser = argparse.ArgumentParser(description="Train the segmentation example.")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    network = train(steps=options.steps)
    pack(network, options.output)
    count = sum(one.numel() for one in network.parameters())
    size = options.output.stat().st_size / 1000
    print(f"{count:,} parameters, {time.monotonic() - started:.0f} s, {size:.0f} kB")
    x, y = tensors(scenes(256, seed=SEED + 1))
    with torch.inference_mode():
        found = torch.cat([network(one).argmax(1) for one in x.split(32)])
    for name, value in zip(CLASSES, iou(found.numpy(), y.numpy()), strict=True):
        print(f"{name}: IoU {value:.3f}")


if __name__ == "__main__":
    main()
