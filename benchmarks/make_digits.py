"""Makes the demo's assets from scikit-learn's digits: `python -m benchmarks.make_digits`.

Half of every class (`split`) trains the network, the other half is shipped and never trained on.
The network is trained in a clear world only: shifts, small rotations and scales, a tenth of
contrast and brightness either way. Its last epoch is shipped: no epoch is picked by its accuracy.

One thread and fixed seeds: the same library versions on the same kind of processor give the same
bytes; elsewhere convolutions round differently and the weights differ in their last digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from sklearn.datasets import load_digits
from torch import Tensor, nn

from streamadapt.replay.digits import DigitsNetwork, normalize, upscale

ASSETS = Path(__file__).resolve().parent.parent / "streamadapt" / "replay" / "assets"
SEED = 0
EPOCHS = 40
BATCH_SIZE = 64


def images_and_labels() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All digits: `[1797, 8, 8, 3]` uint8, grey levels 0..16 spread over 0..255, and labels."""
    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), data.target.astype(np.int64)


def split(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of the training and of the held-out half, drawn class by class."""
    generator = np.random.default_rng(2016)
    train, held_out = [], []
    for label in range(10):
        rows = generator.permutation(np.flatnonzero(labels == label))
        middle = (len(rows) + 1) // 2
        train.append(rows[:middle])
        held_out.append(rows[middle:])
    return np.sort(np.concatenate(train)), generator.permutation(np.concatenate(held_out))


def augment(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts (2 pixels), rotates (11 degrees), scales, contrast and brightness (a tenth each).

    Args:
        frames: `[N, 3, H, W]` float in 0..1.
        generator: where the random numbers come from.

    Returns:
        The same shape, in 0..1.
    """

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    n = len(frames)
    angle = uniform(n, low=-0.2, high=0.2)
    zoom = uniform(n, low=0.9, high=1.1)
    shift = uniform(n, 2, low=-0.17, high=0.17)
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    top = torch.stack([cosine, -sine, shift[:, 0]], 1)
    bottom = torch.stack([sine, cosine, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(frames.shape), align_corners=False)
    frames = F.grid_sample(frames, grid, padding_mode="zeros", align_corners=False)
    contrast = uniform(n, 1, 1, 1, low=0.9, high=1.1)
    brightness = uniform(n, 1, 1, 1, low=0.9, high=1.1)
    mean = frames.mean((1, 2, 3), keepdim=True)
    return (((frames - mean) * contrast + mean) * brightness).clamp(0, 1)


def train(
    images: NDArray[np.uint8], labels: NDArray[np.int64], *, seed: int = SEED
) -> DigitsNetwork:
    """Trains the network on `[N, H, W, 3]` uint8 images; gives it in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    frames = torch.from_numpy(upscale(images)).permute(0, 3, 1, 2).float() / 255
    targets = torch.from_numpy(labels)
    network = DigitsNetwork()
    batches = len(frames) // BATCH_SIZE
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=6e-3, total_steps=EPOCHS * batches
    )
    for _ in range(EPOCHS):
        order = torch.randperm(len(frames), generator=generator)
        for rows in order[: batches * BATCH_SIZE].split(BATCH_SIZE):
            x = (augment(frames[rows], generator) - 0.5) / 0.5
            optimizer.zero_grad()
            F.cross_entropy(network(x), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def degraded(images: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Simple stand-ins for a changed world: fog (haze), night (dark, noisy), noise."""
    generator = np.random.default_rng(SEED)
    x = images / 255
    if kind == "fog":
        x = 0.3 * x + 0.55
    elif kind == "night":
        x = 0.15 * x + generator.normal(scale=0.03, size=x.shape)
    elif kind == "noise":
        x = x + generator.normal(scale=0.2, size=x.shape)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


@torch.no_grad()
def accuracy_percent(
    network: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    batch_statistics: bool = False,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Accuracy on `[N, H, W, 3]` frames with source statistics or with those of each batch."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train(batch_statistics)
        norm.momentum = 0.0  # batch statistics normalise, the stored ones stay as they are
    hits = [
        network(normalize(images[i : i + batch_size])).argmax(1).numpy()
        == labels[i : i + batch_size]
        for i in range(0, len(images), batch_size)
    ]
    for norm in norms:
        norm.eval().momentum = 0.1
    return 100 * float(np.concatenate(hits).mean())


def main() -> None:
    """Trains, writes both assets and prints what the network is worth in each world."""
    parser = argparse.ArgumentParser(description="Make the demo's digits and network.")
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder to write to")
    output: Path = parser.parse_args().output
    torch.set_num_threads(1)
    images, labels = images_and_labels()
    training, held_out = split(labels)
    network = train(images[training], labels[training])
    x, y = images[held_out], labels[held_out]
    output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(output / "digits.npz", x=x, y=y)
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    (output / "digits_network.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    print(f"{len(training)} training digits, {len(held_out)} held out")
    for path in (output / "digits.npz", output / "digits_network.safetensors"):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
    print(f"{'world':8s} {'frozen %':>9s} {'batch statistics %':>19s}")
    for kind in ("clear", "fog", "night", "noise"):
        frames = degraded(upscale(x), kind)
        frozen = accuracy_percent(network, frames, y)
        adapted = accuracy_percent(network, frames, y, batch_statistics=True)
        print(f"{kind:8s} {frozen:9.1f} {adapted:19.1f}")


if __name__ == "__main__":
    main()
