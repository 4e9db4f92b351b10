"""The shipped digits and the small network that reads them: what the demo runs on by default.

Both come from scikit-learn's copy of the UCI handwritten digits (1,797 images of 8×8 pixels) and
are made by `benchmarks/make_digits.py`. One half trains the network; the other half is shipped
here, so nothing the demo shows was seen in training.
"""

from __future__ import annotations

from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

FRAME_SIZE = 24
"""Pixels a side of the frames that the network was trained on."""

PIXEL_MEAN = 0.5
PIXEL_STD = 0.5
"""The network reads `(pixel / 255 - PIXEL_MEAN) / PIXEL_STD`."""

# (input channels, output channels, stride) of each stage.
_STAGES = ((3, 16, 1), (16, 16, 2), (16, 32, 1), (32, 32, 1), (32, 64, 2))
_CLASSES = 10


class _Stage(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        # x: [N, C, H, W]
        return F.relu(self.bn(self.conv(x)))


class DigitsNetwork(nn.Module):
    """Five convolution-BatchNorm-ReLU stages, global average pooling and a linear layer.

    36,000 weights; any input of at least 4×4 pixels works, 24×24 is what it was trained on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(_Stage(*stage) for stage in _STAGES))
        self.linear = nn.Linear(_STAGES[-1][1], _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores the ten digits.

        Args:
            x: `[N, 3, 24, 24]` float, normalised with `PIXEL_MEAN` and `PIXEL_STD`.

        Returns:
            Logits, `[N, 10]`.
        """
        logits: Tensor = self.linear(self.stages(x).mean((2, 3)))
        return logits


def digits_network() -> DigitsNetwork:
    """Gives the trained network, in evaluation mode.

    The global random generator is left as it is: no weight is drawn only to be overwritten.
    """
    with torch.device("meta"):
        network = DigitsNetwork()
    weights = load_safetensors(_asset("digits_network.safetensors"))
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval()


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Gives the held-out digits.

    Returns:
        Images `[N, 8, 8, 3]` uint8 (white on black, three equal channels) and labels `[N]` int64.
    """
    with np.load(BytesIO(_asset("digits.npz")), allow_pickle=False) as archive:
        return archive["x"], archive["y"]


def digits_path() -> Path:
    """Gives the path of the held-out digits, for whatever reads a labelled `.npz` from disk.

    Raises:
        FileNotFoundError: the package was not installed as plain files (it runs from a zip).
    """
    asset = files("streamadapt.replay") / "assets" / "digits.npz"
    if not isinstance(asset, Path):
        raise FileNotFoundError(
            "The shipped digits are not a file of their own: streamadapt runs from an archive. "
            "Call digits() instead, or install the package unpacked."
        )
    return asset


def upscale(images: NDArray[np.uint8], *, size: int = FRAME_SIZE) -> NDArray[np.uint8]:
    """Enlarges images to the size of a frame, bilinearly, rounded to whole grey levels.

    Args:
        images: `[N, H, W, 3]` uint8.
        size: pixels a side of the result.

    Returns:
        `[N, size, size, 3]` uint8.
    """
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    enlarged: NDArray[np.uint8] = x.round_().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return enlarged


def normalize(images: NDArray[np.uint8]) -> Tensor:
    """Turns images into what the network reads.

    Args:
        images: `[N, H, W, 3]` uint8.

    Returns:
        `[N, 3, H, W]` float32, contiguous.
    """
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    return x.div_(255).sub_(PIXEL_MEAN).div_(PIXEL_STD).contiguous()


def _asset(name: str) -> bytes:
    return (files("streamadapt.replay") / "assets" / name).read_bytes()
