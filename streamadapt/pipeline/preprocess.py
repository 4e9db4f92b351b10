"""From a camera's picture to what a model was trained on, declared so that it can be recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from streamadapt.errors import ConfigurationError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Fit = Literal["stretch", "shortest", "letterbox"]
_NAMED = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Preprocess:
    """Resizes, crops and normalises a frame; bilinear, with antialiasing.

    The value of a channel is `(x / divisor - mean) / std`, `x` from 0 to 255.

    Args:
        resize: `(height, width)` in pixels, or one number for both; None: as it comes.
        fit: how a picture gets there. `stretch`: each side for itself. `shortest`: the shorter side
            to the smaller of them, the other in proportion. `letterbox`: as large as it fits in,
            the rest is grey.
        crop: `(height, width)` of the middle that is kept, or one number for both; None: all.
        mean: of each channel, in the order that the model takes them in.
        std: likewise.
        divisor: of the pixels' values; 1: they are left from 0 to 255.
        channels: what the model takes.

    Raises:
        ConfigurationError: an argument out of range.

    >>> Preprocess.parse("resize=256,fit=shortest,crop=224,normalize=imagenet").crop
    (224, 224)
    """

    resize: tuple[int, int] | int | None = None
    fit: Fit = "stretch"
    crop: tuple[int, int] | int | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    divisor: float = 255.0
    channels: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if isinstance(value, int):
                value = (value, value)
            if value is not None and (len(value) != 2 or min(value) < 1):
                raise ConfigurationError(f"`{name}` must be (height, width), got {value!r}.")
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.fit not in ("stretch", "shortest", "letterbox"):
            raise ConfigurationError(
                f"`fit` must be stretch, shortest or letterbox, got {self.fit!r}."
            )
        if self.channels not in ("RGB", "BGR"):
            raise ConfigurationError(f"`channels` must be RGB or BGR, got {self.channels!r}.")
        for name in ("mean", "std"):
            value = tuple(float(one) for one in getattr(self, name))
            if len(value) != 3:
                raise ConfigurationError(f"`{name}` must have 3 values, got {value!r}.")
            object.__setattr__(self, name, value)
        if min(self.std) <= 0.0 or not self.divisor > 0.0:
            raise ConfigurationError("`std` and `divisor` must be positive.")

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """From a text such as `resize=256,fit=shortest,crop=224,normalize=imagenet,channels=BGR`.

        Two numbers are written `224x320`; `normalize` is one of imagenet, half (to -1 ... 1),
        none; `mean` and `std` take three numbers with colons between them.

        Raises:
            ConfigurationError: an unknown key or a value of the wrong kind.
        """
        given: dict[str, Any] = {}
        for part in filter(None, (one.strip() for one in text.split(","))):
            name, equals, value = part.partition("=")
            try:
                if not equals:
                    raise ValueError
                if name in ("resize", "crop"):
                    sides = tuple(int(side) for side in value.lower().split("x"))
                    given[name] = sides[0] if len(sides) == 1 else sides
                elif name == "normalize":
                    given["mean"], given["std"] = _NAMED[value]
                elif name in ("mean", "std"):
                    given[name] = tuple(float(one) for one in value.split(":"))
                elif name == "divisor":
                    given[name] = float(value)
                elif name in ("fit", "channels"):
                    given[name] = value
                else:
                    raise ValueError
            except (ValueError, KeyError):
                raise ConfigurationError(
                    f"`{part}` is no step of preprocessing. Write, for example, "
                    "resize=256,fit=shortest,crop=224,normalize=imagenet,channels=RGB."
                ) from None
        return cls(**given)

    def __str__(self) -> str:
        """A text that says all of it, to be recorded; the same for the same preprocessing."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Preprocess:
        """From a table of a configuration file; `normalize` as in `parse`.

        Raises:
            ConfigurationError: an unknown key or a value of the wrong kind.
        """
        values = dict(values)
        named = values.pop("normalize", None)
        if named is not None:
            if named not in _NAMED:
                raise ConfigurationError(
                    f"`normalize` must be one of {', '.join(_NAMED)}, got {named!r}."
                )
            values["mean"], values["std"] = _NAMED[named]
        try:
            listed: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
            return cls(**listed)
        except TypeError as error:
            raise ConfigurationError(f"preprocessing: {error}.") from None

    def __call__(self, picture: Any) -> Tensor:
        """A frame for the model.

        Args:
            picture: uint8 `[H, W, 3]` or `[H, W]`, RGB.

        Returns:
            float32 `[3, height, width]`.

        Raises:
            ConfigurationError: it is something else, or smaller than the crop.
        """
        array = np.asarray(picture)
        if array.ndim == 2:
            array = np.repeat(array[:, :, None], 3, axis=2)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise ConfigurationError(
                f"Frames must be uint8 [H, W, 3], got {array.dtype} {list(array.shape)}. "
                "Give a function of your own as `preprocess`."
            )
        array = np.require(array, requirements=("C", "W"))  # PyTorch warns of what it cannot write
        pixels = torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0)
        pixels = self._fitted(pixels)
        pixels = self._cropped(pixels)
        if self.channels == "BGR":
            pixels = pixels.flip(1)
        scale, shift = _affine(self.mean, self.std, self.divisor)
        return torch.addcmul(shift, pixels.float(), scale).squeeze(0)

    def _fitted(self, pixels: Tensor) -> Tensor:
        if self.resize is None:
            return pixels
        assert isinstance(self.resize, tuple)
        (height, width), (high, wide) = pixels.shape[-2:], self.resize
        if self.fit == "stretch":
            return _resized(pixels, (high, wide))
        ratios = high / height, wide / width
        if self.fit == "shortest":
            scale = min(high, wide) / min(height, width)
            return _resized(pixels, (round(height * scale), round(width * scale)))
        scale = min(ratios)
        inner = max(round(height * scale), 1), max(round(width * scale), 1)
        above, left = (high - inner[0]) // 2, (wide - inner[1]) // 2
        padding = (left, wide - inner[1] - left, above, high - inner[0] - above)
        return F.pad(_resized(pixels, inner), padding, value=114)

    def _cropped(self, pixels: Tensor) -> Tensor:
        if self.crop is None:
            return pixels
        assert isinstance(self.crop, tuple)
        (height, width), (high, wide) = pixels.shape[-2:], self.crop
        if high > height or wide > width:
            raise ConfigurationError(
                f"A frame of {height} × {width} pixels is smaller than the crop of {high} × {wide}."
            )
        above, left = (height - high) // 2, (width - wide) // 2
        return pixels[..., above : above + high, left : left + wide]


@lru_cache(maxsize=64)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], divisor: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift of normalisation, `[1, 3, 1, 1]` each."""
    with torch.inference_mode(False):
        scale = torch.tensor([1.0 / (divisor * one) for one in std])
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
        return scale.view(1, 3, 1, 1), shift.view(1, 3, 1, 1)


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
