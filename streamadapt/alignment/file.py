"""The source side of CORAL as a safetensors file.

Tensors `mean` `[D]` and `covariance` `[D, D]`, both float64; everything else stands in the
metadata, whose values are strings: `format`, `layer`, `frames`, `regularisation`, `align_mean`,
`half_life_frames`, `refresh_frames`. A file is refused unless all of it is there, fits and is
finite, and the covariance is symmetric with no eigenvalue below zero.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from streamadapt.errors import DataError

if TYPE_CHECKING:
    from streamadapt.alignment.source import Coral

FORMAT = "streamadapt.coral.1"
_ROUNDING = 1e-9  # how far below zero an eigenvalue may be, as a share of the largest


def write_coral(path: str | os.PathLike[str], coral: Coral) -> None:
    """Write `coral` to `path`, whole or not at all."""
    target = Path(path)
    data = save(
        {"mean": coral.mean.contiguous(), "covariance": coral.covariance.contiguous()},
        metadata={
            "format": FORMAT,
            "layer": coral.layer,
            "frames": str(coral.frames),
            "regularisation": repr(float(coral.regularisation)),
            "align_mean": str(coral.align_mean).lower(),
            "half_life_frames": repr(float(coral.half_life_frames)),
            "refresh_frames": str(coral.refresh_frames),
        },
    )
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, target)


def read_coral(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a `Coral`.

    Raises:
        DataError: what is wrong with it.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as a safetensors file: {error}.") from error
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path} is no CORAL file of this version: its `format` is "
            f"{metadata.get('format')!r}, not {FORMAT!r}. Calibrate again, and save()."
        )
    try:
        mean, covariance = tensors["mean"], tensors["covariance"]
        fields = {
            "mean": mean,
            "covariance": covariance,
            "layer": metadata["layer"],
            "frames": int(metadata["frames"]),
            "regularisation": float(metadata["regularisation"]),
            "align_mean": {"true": True, "false": False}[metadata["align_mean"]],
            "half_life_frames": float(metadata["half_life_frames"]),
            "refresh_frames": int(metadata["refresh_frames"]),
        }
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} lacks {error}, or its value is not legal.") from error
    wrong = _fault(mean, covariance)
    if wrong is not None:
        raise DataError(f"{path}: {wrong}. Calibrate again.")
    return fields


def _fault(mean: Tensor, covariance: Tensor) -> str | None:
    """What is wrong with the tensors, in words."""
    if mean.dim() != 1 or covariance.shape != (mean.shape[0],) * 2:
        return (
            f"`mean` and `covariance` have shapes {list(mean.shape)} and {list(covariance.shape)}"
        )
    if mean.dtype != torch.float64 or covariance.dtype != torch.float64:
        return "`mean` and `covariance` are not float64"
    if not bool(torch.isfinite(mean).all() & torch.isfinite(covariance).all()):
        return "it holds values that are not finite"
    if not torch.allclose(covariance, covariance.T):
        return "its covariance is not symmetric"
    values = torch.linalg.eigvalsh(covariance)
    if bool(values[0] < -_ROUNDING * values[-1].abs()):
        return "its covariance has eigenvalues below zero"
    return None
