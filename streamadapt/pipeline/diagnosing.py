"""Whether frames are prepared as they were when the model was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from streamadapt.estimators import Welford
from streamadapt.layout import layers_up_to
from streamadapt.moments import Moments, location_scale_distance
from streamadapt.offline import engine_on_copy
from streamadapt.pipeline.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from streamadapt.weighing import StepRows

FEWEST_PICTURES = 8
_DEPTH = 1 / 3  # of the model: its first layers see how frames were prepared
_CLEARLY = 0.75  # of the declared one's distance, from which on another is named
_ZERO, _ONE, _HALF = (0.0,) * 3, (1.0,) * 3, (0.5,) * 3


@dataclass(frozen=True)
class Candidate:
    """A way of preparing frames, and how far that is from what the model knows.

    Attributes:
        name: what is other than declared, in words.
        preprocess: all of it.
        distance: of the first third of the layers' inputs from the source, mean over channels and
            layers.
    """

    name: str
    preprocess: Preprocess
    distance: float


def candidates(
    model: nn.Module, pictures: Sequence[Any], *, declared: Preprocess
) -> list[Candidate]:
    """What a model's first layers say of preprocessings that people mix up, the likeliest first.

    A wrong normalisation looks like drift that is there from the first frame and never goes. The
    declared one is compared with the usual ones, in both orders of channels.

    Args:
        model: in eval mode; it is not changed.
        pictures: uint8 `[H, W, 3]`, RGB, of the world that it was trained in as far as possible.
        declared: what is used.

    Raises:
        UnsupportedModelError: nothing to adapt.
        ModelStateError: a BatchNorm layer is in training mode.
    """
    scales: dict[str, dict[str, Any]] = {
        "as declared": {},
        "normalize=imagenet": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "divisor": 255.0},
        "normalize=half (-1 to 1)": {"mean": _HALF, "std": _HALF, "divisor": 255.0},
        "normalize=none (0 to 1)": {"mean": _ZERO, "std": _ONE, "divisor": 255.0},
        "divisor=1 (0 to 255)": {"mean": _ZERO, "std": _ONE, "divisor": 1.0},
    }
    orders: tuple[Literal["RGB", "BGR"], ...] = ("RGB", "BGR")
    found: dict[Preprocess, Candidate] = {}
    for scale, values in scales.items():
        for order in sorted(orders, key=lambda one: one != declared.channels):
            tried = replace(declared, channels=order, **values)
            if tried in found:
                continue
            name = scale if order == declared.channels else f"{scale}, channels={order}"
            name = name.removeprefix("as declared, ")
            found[tried] = Candidate(name, tried, _distance(model, pictures, tried))
    return sorted(found.values(), key=lambda one: one.distance)


def misread(found: Sequence[Candidate], *, declared: Preprocess) -> Candidate | None:
    """The candidate that frames are probably to be prepared as; None: as declared, or unclear."""
    ours = next(one for one in found if one.preprocess == declared)
    best = found[0]
    return best if best.distance < _CLEARLY * ours.distance else None


def _distance(model: nn.Module, pictures: Sequence[Any], preprocess: Preprocess) -> float:
    with (
        engine_on_copy(model, estimator=Welford(), layers=None) as (twin, engine),
        torch.inference_mode(),
    ):
        parameter = next(twin.parameters())
        means, variances = [], []
        for picture in pictures:
            frame = preprocess(picture).unsqueeze(0).to(parameter.device, parameter.dtype)
            where = StepRows((0,), None, (0.0,))
            with engine.armed(where, entries=1, observe=True) as step:
                twin(frame)
            observed = step.all_moments()
            means.append(observed.mean.double())
            variances.append(observed.var.double())
        mean = torch.cat(means)
        pooled = mean.mean(dim=0)
        spread = torch.cat(variances).mean(dim=0) + (mean - pooled).square().mean(dim=0)
        source = engine.bank.source.double()
        layout = engine.layout
        apart = location_scale_distance(
            Moments(torch.zeros(()), pooled, spread),
            Moments(torch.zeros(()), source[0], source[1]),
            layout.eps.double(),
        )
        early = layers_up_to(_DEPTH, len(layout.layers))
        value = float(layout.mean_per_layer(apart)[:early].mean())
        return math.inf if math.isnan(value) else value
