"""A small network that says of every pixel which kind of shape it belongs to."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.scenes import CLASSES
from streamadapt.pipeline import Preprocess

WEIGHTS = Path(__file__).parent / "weights.safetensors"
PREPARE = Preprocess.parse("normalize=half")


def conv_bn_relu(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class SegmentationNetwork(nn.Module):
    """Four scales down, and up again with the skips added: 14 BatchNorm layers."""

    _WIDTHS = (16, 32, 64, 96)

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        inputs = (3, *self._WIDTHS)
        self.down = nn.ModuleList(
            nn.Sequential(conv_bn_relu(a, b, stride=1 if a == 3 else 2), conv_bn_relu(b, b))
            for a, b in zip(inputs, self._WIDTHS, strict=False)
        )
        wide, narrow = self._WIDTHS[:0:-1], self._WIDTHS[-2::-1]
        self.narrow = nn.ModuleList(
            conv_bn_relu(a, b, kernel=1) for a, b in zip(wide, narrow, strict=True)
        )
        self.up = nn.ModuleList(conv_bn_relu(b, b) for b in narrow)
        self.head = nn.Conv2d(self._WIDTHS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `[N, classes, H, W]` of `[N, 3, H, W]`; `H` and `W` divide by 8."""
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for narrow, stage in zip(self.narrow, self.up, strict=True):
            x = F.interpolate(narrow(x), scale_factor=2.0, mode="nearest")
            x = stage(x + skips.pop())
        return self.head(x)


def load(path: Path = WEIGHTS) -> SegmentationNetwork:
    """The trained network, in evaluation mode; a factory for `streamadapt run --model`."""
    network = SegmentationNetwork()
    network.load_state_dict({name: one.float() for name, one in load_file(path).items()})
    return network.eval()
