"""Reference networks and the labelled images they are measured on.

Written from the papers, with the parameter names of the published weights, so that those load
strictly: CIFAR ResNets (He et al. 2015, arXiv 1512.03385, section 4.2), ImageNet ResNets (the same,
section 4.1, stride in the 3×3 convolution), MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381).
The U-Net (Ronneberger et al. 2015, arXiv 1505.04597) is smaller than the paper's and has BatchNorm.

The data is not part of the project: `data_dir` says where it is looked for.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class CifarBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut without weights (the paper's option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.new_channels:
            # Zero channels are split before and after, as the published weights were trained.
            before = self.new_channels // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet for 32×32 images: `6n + 2` layers in three stages of 16, 32 and 64 channels."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"`depth` must be 6n + 2 (8, 14, 20, ... 56), got {depth}.")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks=depth // 6, stride=1)
        self.layer2 = self._stage(16, 32, blocks=depth // 6, stride=2)
        self.layer3 = self._stage(32, 64, blocks=depth // 6, stride=2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, *, blocks: int, stride: int) -> nn.Sequential:
        rest = (CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        return nn.Sequential(CifarBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 10]` of images `[N, 3, 32, 32]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, four times as wide at the end as in the middle."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """ResNet for ImageNet-size images: a 7×7 stem and four stages."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for i, count in enumerate(blocks):
            stage = nn.Sequential()
            for k in range(count):
                stride = 2 if i > 0 and k == 0 else 1
                stage.append(block(channels, 64 << i, stride))
                channels = (64 << i) * block.expansion
            self.add_module(f"layer{i + 1}", stage)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 1000]` of images `[N, 3, H, W]`."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def _conv_bn_relu6(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widen (1×1), filter each channel (3×3), narrow without an activation (1×1)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, widening: int) -> None:
        super().__init__()
        width = inputs * widening
        self.conv = nn.Sequential()
        if widening != 1:
            self.conv.append(_conv_bn_relu6(inputs, width, 1))
        self.conv.append(_conv_bn_relu6(width, width, 3, stride=stride, groups=width))
        self.conv.append(nn.Conv2d(width, outputs, 1, bias=False))
        self.conv.append(nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 at width 1: 52 BatchNorm layers."""

    # The paper's table 2: widening, output channels, repeats, stride of the first.
    _TABLE = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_conv_bn_relu6(3, 32, 3, stride=2))
        channels = 32
        for widening, outputs, repeats, first_stride in self._TABLE:
            for k in range(repeats):
                stride = first_stride if k == 0 else 1
                self.features.append(
                    InvertedResidual(channels, outputs, stride=stride, widening=widening)
                )
                channels = outputs
        self.features.append(_conv_bn_relu6(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 1000]` of images `[N, 3, H, W]`."""
        return self.classifier(self.features(x).mean((2, 3)))


def _conv_bn_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv_bn_relu(inputs, outputs, 3), _conv_bn_relu(outputs, outputs, 3))


class UNet(nn.Module):
    """A U-Net for segmentation: six scales, a skip concatenated at each, 27 BatchNorm layers.

    Unlike the paper's it has padding and BatchNorm, is a quarter as wide with one scale more, and
    enlarges by repeating pixels, after a 1×1 convolution that halves the channels.
    """

    _WIDTHS = (16, 32, 64, 128, 256, 512)

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        inputs = (3, *self._WIDTHS)
        self.down = nn.ModuleList(_twice(a, b) for a, b in pairwise(inputs))
        upwards = list(pairwise(reversed(self._WIDTHS)))
        self.narrow = nn.ModuleList(_conv_bn_relu(a, b, 1) for a, b in upwards)
        self.up = nn.ModuleList(_twice(2 * b, b) for _, b in upwards)
        self.head = nn.Conv2d(self._WIDTHS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, classes, H, W]` of images `[N, 3, H, W]`; `H` and `W` divide by 32."""
        skips: list[Tensor] = []
        for k, stage in enumerate(self.down):
            if k > 0:
                x = F.max_pool2d(x, 2)
            x = stage(x)
            skips.append(x)
        skips.pop()
        for narrow, stage in zip(self.narrow, self.up, strict=True):
            x = F.interpolate(narrow(x), scale_factor=2.0, mode="nearest")
            x = stage(torch.cat((skips.pop(), x), dim=1))
        return self.head(x)


def cifar_resnet(depth: int) -> CifarResNet:
    """CIFAR ResNet of 20, 56, ... layers with random weights, in evaluation mode."""
    return CifarResNet(depth).eval()


def mobilenet_v2() -> MobileNetV2:
    """MobileNetV2 with random weights, in evaluation mode."""
    return MobileNetV2().eval()


def resnet18() -> ResNet:
    """ResNet-18 with random weights, in evaluation mode: 20 BatchNorm layers."""
    return ResNet(BasicBlock, (2, 2, 2, 2)).eval()


def resnet50() -> ResNet:
    """ResNet-50 with random weights, in evaluation mode: 53 BatchNorm layers, 26,560 channels."""
    return ResNet(Bottleneck, (3, 4, 6, 3)).eval()


def unet() -> UNet:
    """A U-Net of 21 classes with random weights, in evaluation mode: 7.3 M parameters."""
    return UNet().eval()


def data_dir() -> Path:
    """Where the data is looked for: `STREAMADAPT_DATA`, else `../shared/data` by the repository."""
    chosen = os.environ.get("STREAMADAPT_DATA")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "shared" / "data"


def load_cifar_resnet(depth: int, data_dir: Path | None = None) -> CifarResNet:
    """CIFAR ResNet-20 or ResNet-56 with its trained weights, in evaluation mode.

    Raises:
        FileNotFoundError: the data is not there, or has no weights of this depth.
    """
    model = cifar_resnet(depth)
    model.load_state_dict(load_file(_found(data_dir, f"cifar10/resnet{depth}.safetensors")))
    return model


def load_resnet20() -> CifarResNet:
    """CIFAR ResNet-20 with its trained weights: a factory for scenarios."""
    return load_cifar_resnet(20)


def load_resnet56() -> CifarResNet:
    """CIFAR ResNet-56 with its trained weights: a factory for scenarios."""
    return load_cifar_resnet(56)


def load_mobilenet_v2(data_dir: Path | None = None) -> MobileNetV2:
    """MobileNetV2 with its trained weights, in evaluation mode.

    Raises:
        FileNotFoundError: the data is not there.
    """
    model = mobilenet_v2()
    model.load_state_dict(load_file(_found(data_dir, "imagenet/mobilenet_v2.safetensors")))
    return model


def cifar_images(data_dir: Path | None = None) -> tuple[Images, Labels]:
    """CIFAR-10 test images `[5000, 32, 32, 3]` uint8 and labels `[5000]`.

    Raises:
        FileNotFoundError: the data is not there.
    """
    with np.load(_found(data_dir, "cifar10/images.npz"), allow_pickle=False) as archive:
        return archive["x"], archive["y"]


def imagenet_images(
    data_dir: Path | None = None, *, limit: int | None = None
) -> tuple[Images, Labels]:
    """ImageNet samples, one a class: `[N, 224, 224, 3]` uint8 and labels `[N]` (needs Pillow).

    Args:
        data_dir: the data's folder.
        limit: at most so many, spread evenly over the classes; all 334 by default.

    Raises:
        FileNotFoundError: the data is not there.
    """
    from PIL import Image

    paths = sorted(_found(data_dir, "imagenet/images").glob("*.jpg"))
    if limit is not None and limit < len(paths):
        paths = [paths[i * len(paths) // limit] for i in range(limit)]
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    return np.stack(images), np.array([int(path.stem) for path in paths], dtype=np.int64)


def normalize(
    images: Images,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Tensor:
    """Turns `[N, H, W, 3]` uint8 into `[N, 3, H, W]` float32: `(pixel / 255 - mean) / std`."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255)
    shape = (1, 3, 1, 1)
    return x.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape)).contiguous()


def _found(folder: Path | None, name: str) -> Path:
    path = (data_dir() if folder is None else folder) / name
    if not path.exists():
        raise FileNotFoundError(
            f"No {path}. Point STREAMADAPT_DATA at the folder that holds cifar10/ and imagenet/."
        )
    return path
