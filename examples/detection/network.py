"""A small single-shot detector whose BatchNorms are frozen, as torchvision's detectors have them.

One scale, a grid of cells eight pixels wide: the cell that holds a box's centre has its class
scores and its box. The head has no normalisation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.scenes import CLASSES
from streamadapt.pipeline import Preprocess

WEIGHTS = Path(__file__).parent / "weights.safetensors"
PREPARE = Preprocess.parse("normalize=half")
STRIDE = 8  # pixels, of a cell
TYPICAL = 16.0  # pixels, a side that the head's zero stands for
_CANDIDATES = 24  # of a picture
_OVERLAP = 0.5  # of two boxes of one class, beyond which the weaker one goes

Detections = dict[str, Tensor]


class FrozenBatchNorm2d(nn.Module):
    """Normalises by four buffers and has no parameters; names as in torchvision's."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class Detector(nn.Module):
    """Seven convolutions with a normalisation each, and a head of two.

    Args:
        norm: makes a normalisation: `nn.BatchNorm2d` to train, `FrozenBatchNorm2d` to deploy.
        least_score: of detections that are given.
    """

    # Output channels and stride of each convolution.
    _TABLE = ((16, 2), (32, 1), (32, 2), (64, 1), (64, 2), (96, 1), (96, 1))

    def __init__(
        self, norm: type[nn.Module] = FrozenBatchNorm2d, *, least_score: float = 0.05
    ) -> None:
        super().__init__()
        self.least_score = least_score
        self.backbone, inputs = nn.Sequential(), 3
        for outputs, stride in self._TABLE:
            conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            self.backbone.append(nn.Sequential(conv, norm(outputs), nn.ReLU(inplace=True)))
            inputs = outputs
        self.head = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, len(CLASSES) - 1 + 4, 1),
        )

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores before the sigmoid `[N, 3, h, w]`, and boxes as offsets `[N, 4, h, w]`.

        Offsets are those of a box's centre from the cell's, in cells, and the logarithms of its
        width and height over `TYPICAL`.
        """
        out = self.head(self.backbone(x))
        return out[:, :-4], out[:, -4:]

    def forward(self, x: Tensor) -> list[Detections]:
        """What is in pictures `[N, 3, H, W]`: a dict of boxes, labels and scores for each.

        Boxes are `[n, 4]`, left, top, right, bottom in pixels; labels start at 1, the best first.
        """
        scores, offsets = self.maps(x)
        boxes = boxes_of(offsets)
        return [
            _detections(*one, least_score=self.least_score)
            for one in zip(scores.sigmoid(), boxes, strict=True)
        ]


def boxes_of(offsets: Tensor) -> Tensor:
    """Boxes in pixels `[N, h, w, 4]` of offsets `[N, 4, h, w]`."""
    offsets = offsets.permute(0, 2, 3, 1)
    rows, columns = (torch.arange(n, device=offsets.device) + 0.5 for n in offsets.shape[1:3])
    cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    centres = (cells + offsets[..., :2]) * STRIDE
    halves = offsets[..., 2:].clamp(max=3).exp() * (TYPICAL / 2)
    return torch.cat([centres - halves, centres + halves], dim=-1)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes, `[n, m]`."""
    corner = torch.maximum(one[:, None, :2], other[None, :, :2])
    opposite = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    both = (opposite - corner).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    return both / (areas[0][:, None] + areas[1][None] - both).clamp(min=1e-9)


def _detections(scores: Tensor, boxes: Tensor, *, least_score: float) -> Detections:
    cells = scores[0].numel()
    best, index = scores.flatten().topk(_CANDIDATES)
    index = index[best >= least_score]
    labels, boxes = index // cells + 1, boxes.reshape(-1, 4)[index % cells]
    rivals = (overlaps(boxes, boxes) > _OVERLAP) & (labels[:, None] == labels)
    kept: list[int] = []
    for k in range(len(index)):  # the best first: what a kept one covers is the same thing
        if not any(rivals[k, other] for other in kept):
            kept.append(k)
    return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores.flatten()[index[kept]]}


def frozen_copy(trained: Detector) -> Detector:
    """A trained detector with its BatchNorms frozen, in evaluation mode."""
    detector = Detector(FrozenBatchNorm2d, least_score=trained.least_score)
    state = {k: v for k, v in trained.state_dict().items() if "num_batches_tracked" not in k}
    detector.load_state_dict(state)
    return detector.eval()


def load(path: Path = WEIGHTS) -> Detector:
    """The trained detector, in evaluation mode; a factory for `streamadapt run --model`."""
    detector = Detector()
    detector.load_state_dict({name: one.float() for name, one in load_file(path).items()})
    return detector.eval()
