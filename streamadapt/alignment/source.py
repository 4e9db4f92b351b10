"""The source side of CORAL: what the classifier head was trained on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.alignment.features import head_moments
from streamadapt.alignment.file import read_coral, write_coral
from streamadapt.alignment.roots import matrix_power
from streamadapt.errors import ConfigurationError, DataError


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Coral:
    """Correlation alignment of the features in front of a classifier head.

    Give it to `StreamProcessor(model, alignment=coral)`: the features of every frame are whitened
    with the covariance of their own stream, re-coloured with that of the source, and moved onto
    the source's mean::

        f' = (f - mu_t) A + mu_s      A = (C_t + lambda I)^(-1/2) (C_s + lambda I)^(1/2)

    The paper trains a classifier on source features that were given the target's covariance; with
    a classifier that is already trained and stays, the map runs the other way. It aligns
    covariances only, of features that were standardised before, and therefore have equal means;
    features of a deployed model do not, and most of what there is to gain is in the mean:
    `align_mean`. Without it the mean stays where it is, `f' = (f - mu_t) A + mu_t`.

    Online, `mu_t` and `C_t` are those of an exponentially fading window that starts at the source,
    so that the first map is the identity. They follow the *content* of a stream as well as its
    domain: a camera that shows one class for longer than the half-life pulls that class towards
    the mean of all.

    Attributes:
        layer: name of the head, an nn.Linear.
        mean: `[D]` float64, of the head's input over the source.
        covariance: `[D, D]` float64, population covariance.
        frames: how many feature vectors they rest on.
        regularisation: lambda, above zero, in the unit of the features' variance; the paper's is 1
            for standardised features. `covariance.diagonal().mean()` is the scale to compare with.
        align_mean: move the mean as well.
        half_life_frames: after so many frames of a stream an old frame counts half. The window
            weighs like 2.9 times as many frames: fewer than `D`, and the covariance is noise.
        refresh_frames: how many frames of a stream pass from one computation of its `A` to the
            next; the mean follows with every batch.

    Raises:
        ConfigurationError: a value out of range.

    Reference:
        Sun, Feng, Saenko, "Return of Frustratingly Easy Domain Adaptation", 2016,
        arXiv:1511.05547.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 3)).eval()
        >>> images = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 1.0], [2.0, -1.0]])
        >>> coral = Coral.calibrate(model, [images])
        >>> coral.layer, coral.mean.tolist(), coral.covariance.diagonal().tolist()
        ('1', [2.0, 0.0], [0.5, 0.5])
    """

    layer: str
    mean: Tensor
    covariance: Tensor
    frames: int
    regularisation: float = 1.0
    align_mean: bool = True
    half_life_frames: float
    refresh_frames: int

    def __post_init__(self) -> None:
        for name in ("regularisation", "half_life_frames"):
            value = getattr(self, name)
            if not (value > 0.0 and math.isfinite(value)):
                raise ConfigurationError(f"`{name}` must be positive and finite, got {value}.")
        whole = isinstance(self.refresh_frames, int) and not isinstance(self.refresh_frames, bool)
        if not whole or self.refresh_frames < 1:
            raise ConfigurationError(
                f"`refresh_frames` must be a whole number from 1, got {self.refresh_frames!r}."
            )
        if self.mean.shape != self.covariance.shape[:1] or self.covariance.dim() != 2:
            raise ConfigurationError(
                f"`covariance` must be [D, D] and `mean` [D], got {list(self.covariance.shape)} "
                f"and {list(self.mean.shape)}."
            )

    @classmethod
    def calibrate(
        cls,
        model: nn.Module,
        source_batches: Iterable[Any],
        *,
        layer: str | None = None,
        regularisation: float = 1.0,
        align_mean: bool = True,
        half_life_frames: float | None = None,
        refresh_frames: int | None = None,
    ) -> Coral:
        """Measure the source side on a few hundred to thousand source frames; labels not needed.

        Args:
            model: as deployed, not wrapped, in eval mode; it is not changed.
            source_batches: input tensors, or tuples that start with one; at least a few times as
                many frames as the head has inputs.
            layer: name of the head; None for the last nn.Linear that the model executes.
            regularisation: as above.
            align_mean: as above.
            half_life_frames: as above; None for `max(360, D)`.
            refresh_frames: as above; None for `max(64, D)`.

        Raises:
            ConfigurationError: a value out of range.
            UnsupportedModelError: the head is not an nn.Linear that runs once a forward on one
                feature vector a frame.
            ModelStateError: the model is in training mode.
            DataError: fewer than two frames, or features that are not finite.
        """
        name, found = head_moments(model, source_batches, layer=layer, what="source_batches")
        size = found.mean.shape[0]
        return cls(
            layer=name,
            mean=found.mean.cpu(),
            covariance=found.covariance.cpu(),
            frames=int(found.count),
            regularisation=regularisation,
            align_mean=align_mean,
            half_life_frames=(
                default_half_life(size) if half_life_frames is None else half_life_frames
            ),
            refresh_frames=default_refresh(size) if refresh_frames is None else refresh_frames,
        )

    @property
    def features(self) -> int:
        """Number of inputs of the head, `D`."""
        return self.mean.shape[0]

    def excess(self, covariance: Tensor) -> Tensor:
        """`A - I` for a target covariance `[D, D]`, float64 on its device, by eigenvalues."""
        whiten = matrix_power(covariance.double(), -0.5, ridge=self.regularisation)
        colour = matrix_power(self.covariance, 0.5, ridge=self.regularisation).to(whiten)
        return whiten @ colour - torch.eye(self.features).to(whiten)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a safetensors file, whole or not at all."""
        write_coral(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Coral:
        """Read a file made by `save`.

        Raises:
            DataError: it cannot be read, or does not hold what it must.
        """
        try:
            return cls(**read_coral(path))
        except ConfigurationError as error:
            raise DataError(f"{path}: {error}") from error

    def __repr__(self) -> str:
        return (
            f"Coral(layer={self.layer!r}, features={self.features}, frames={self.frames}, "
            f"regularisation={self.regularisation:g}, align_mean={self.align_mean}, "
            f"half_life_frames={self.half_life_frames:g}, refresh_frames={self.refresh_frames})"
        )


def default_half_life(features: int) -> float:
    """Frames after which an old frame counts half: as `EMA`, more where `D` needs them."""
    return float(max(360, features))


def default_refresh(features: int) -> int:
    """Frames from one map to the next. A map costs `D^3`, a frame's share of it `D^2`."""
    return max(64, features)
