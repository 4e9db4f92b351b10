"""What a model said, drawn over the picture it said it of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt.errors import ConfigurationError
from streamadapt.pipeline.result import Reading
from streamadapt.scores import main_output

_BAR = 26  # pixels, of the strip below the picture
_FULL = 1.0  # drift at which the bar is full
_BADGES = {
    "adapting": (46, 160, 67),
    "held": (210, 153, 34),
    "shrunk": (210, 153, 34),
    "rolled_back": (210, 105, 30),
    "pinned": (207, 34, 46),
    "shadow": (87, 96, 106),
    "frozen": (9, 105, 218),
    "killed": (207, 34, 46),
}
_COLOURS = np.array(
    [[0, 0, 0]]
    + [[(37 * k) % 256, (101 * k + 80) % 256, (191 * k + 40) % 256] for k in range(1, 64)]
)


def pillow() -> tuple[Any, Any]:
    """`PIL.Image` and `PIL.ImageDraw`.

    Raises:
        ConfigurationError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise ConfigurationError(
            "Drawing over videos needs Pillow: pip install 'streamadapt[video]'."
        ) from None
    return Image, ImageDraw


def annotated(
    picture: Any, output: Any, reading: Reading, *, labels: Sequence[str] = (), title: str = ""
) -> Any:
    """A picture with what the model said of it, and a strip below it for its camera.

    Drawn are class scores `[K]` (the best class), scores of pixels `[K, h, w]` (a mask over the
    picture; class 0 is not drawn), and detections, a mapping with `boxes` `[n, 4]` in pixels of
    the picture and, if there are, `labels` and `scores`; of another mapping with `out` or `logits`,
    that entry. The strip has the camera's name, a bar for its drift, and what is done with its
    statistics.

    Args:
        picture: uint8 `[H, W, 3]`, RGB.
        output: of this frame, without the dimension of the batch.
        reading: of its camera.
        labels: names of classes.
        title: of the strip.

    Returns:
        uint8 `[H + 26, W, 3]`; H and W one less where they are odd.
    """
    image_module, draw_module = pillow()
    picture = np.asarray(picture)
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    picture = picture[:height, :width]
    text = None
    boxed = isinstance(output, Mapping) and "boxes" in output
    output = output if boxed else main_output(output)
    if isinstance(output, Tensor) and output.dim() == 3:
        picture = _with_mask(picture, output)
    canvas = np.zeros((height + _BAR, width, 3), np.uint8)
    canvas[:height] = picture
    image = image_module.fromarray(canvas)
    draw = draw_module.Draw(image)
    if isinstance(output, Tensor) and output.dim() == 1 and output.numel() > 1:
        probability, best = output.detach().float().softmax(0).max(0)
        text = f"{_name(int(best), labels)} {100 * float(probability):.0f} %"
    elif boxed:
        _draw_boxes(draw, output, labels)
    if text is not None:
        _label(draw, (6, 6), text, (0, 0, 0))
    _strip(draw, height, width, title, reading)
    return np.asarray(image)


def _with_mask(picture: Any, scores: Tensor) -> Any:
    classes = scores.detach().float().argmax(0)[None, None].float()
    size = picture.shape[:2]
    mask = torch.nn.functional.interpolate(classes, size, mode="nearest")[0, 0].long().cpu().numpy()
    shown = _COLOURS[mask % len(_COLOURS)]
    mixed = (0.55 * picture + 0.45 * shown).astype(np.uint8)
    return np.where((mask == 0)[:, :, None], picture, mixed)


def _draw_boxes(draw: Any, output: Mapping[str, Any], labels: Sequence[str]) -> None:
    boxes = torch.as_tensor(output["boxes"]).detach().float().cpu().reshape(-1, 4)
    classes, scores = output.get("labels"), output.get("scores")
    for index, box in enumerate(boxes.tolist()):
        left, top, right, bottom = box
        kind = 0 if classes is None else int(classes[index])
        colour = tuple(int(one) for one in _COLOURS[1 + kind % (len(_COLOURS) - 1)])
        if right > left and bottom > top:
            draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        text = "" if classes is None else _name(kind, labels)
        if scores is not None:
            text = f"{text} {100 * float(scores[index]):.0f} %".strip()
        if text:
            _label(draw, (left + 2, max(top - 14, 0)), text, colour)


def _strip(draw: Any, height: int, width: int, title: str, reading: Reading) -> None:
    colour = _BADGES[reading.action]
    badge = reading.action.replace("_", " ")
    if reading.action == "adapting" and reading.phase is not None:
        badge = reading.phase
    ends = 8 + draw.textlength(badge)
    draw.rectangle((0, height, ends, height + _BAR), fill=colour)
    draw.text((4, height + 7), badge, fill=(255, 255, 255))
    draw.text((ends + 6, height + 7), title, fill=(220, 220, 220))
    left = max(int(ends + 12 + draw.textlength(title)), width // 2)
    drift = reading.drift
    told = "drift –" if drift is None else f"drift {drift:.2f}"
    draw.text((left, height + 7), told, fill=(220, 220, 220))
    left += int(draw.textlength("drift 00.00")) + 6
    if left < width - 12:
        top, right = height + 8, width - 6
        draw.rectangle((left, top, right, top + 10), outline=(120, 120, 120))
        share = 0.0 if drift is None else min(max(drift / _FULL, 0.0), 1.0)
        if share:
            filled = left + share * (right - left)
            red = (207, 34, 46) if share > 0.5 else (46, 160, 67)
            draw.rectangle((left, top, filled, top + 10), fill=red)


def _label(draw: Any, place: tuple[float, float], text: str, colour: tuple[int, ...]) -> None:
    draw.rectangle(draw.textbbox(place, text), fill=colour)
    draw.text(place, text, fill=(255, 255, 255))


def _name(index: int, labels: Sequence[str]) -> str:
    return labels[index] if index < len(labels) else f"class {index}"
