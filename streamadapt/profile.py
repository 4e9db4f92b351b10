"""What a model's BatchNorm inputs look like at home: the reference for everything that moves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.layout import layers_up_to

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that variability is known for."""

_FORMAT = "streamadapt-profile"
_VERSION = 4


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SourceProfile:
    """Source statistics, and how much they vary while the world stays the same.

    `S` batch sizes (`SIZES`), `C` channels of all layers one after the other, `L` layers. With
    `delta = (m - mu) / sqrt(v + eps)` and `l = ln((s + eps) / (v + eps))` of the mean `m` and the
    variance `s` of a batch of source frames, `mu`, `v` of the source.

    Attributes:
        fingerprint: of the layers and the source statistics; see `statistics_fingerprint`.
        layers: `(name, channels, eps)`.
        frames: how many frames it rests on.
        mean: `[C]`, the source's.
        var: `[C]`, the source's.
        mean_variance: `[S, C]`, variance of `delta`.
        log_variance: `[S, C]`, variance of `l`.
        log_bias: `[S, C]`, mean of `l`: small batches have small variances.
        freedom: `[S, L]`, effective degrees of freedom of
            `Q = mean_c ((delta - E delta)^2 / Var delta + (l - E l)^2 / Var l) / 2`, which are
            `2 E[Q]^2 / Var[Q]`: channels of a layer go together.
        innovation: `[S, L]`, location-scale distance of a batch from the source, mean over the
            layer's channels.
        frame_distance: `[L]`, median distance of single frames from the source in each layer.
        frame_spread: `[L]`, so many times that distance one frame in ten exceeds in any of the
            layers up to each.
        settled: `[L]`, distance from the source after settling on 64 frames of it.
        entropy: of the answers, mean over frames, in nats; NaN where they are no class scores.
        confidence: of the answers, mean over frames, 0 to 1; NaN likewise.
        diversity: effective number of classes, exp of the entropy of the mean answer; NaN likewise.
    """

    fingerprint: str
    layers: tuple[tuple[str, int, float], ...]
    frames: int
    mean: Tensor
    var: Tensor
    mean_variance: Tensor
    log_variance: Tensor
    log_bias: Tensor
    freedom: Tensor
    innovation: Tensor
    frame_distance: Tensor
    frame_spread: Tensor
    settled: Tensor
    entropy: float = math.nan
    confidence: float = math.nan
    diversity: float = math.nan

    def innovation_of(self, frames: int, *, depth: float = 1.0) -> float:
        """`innovation` of a batch of so many frames, mean over the layers up to a depth.

        Of the nearest size that is known.
        """
        nearest = min(range(len(SIZES)), key=lambda k: abs(math.log(SIZES[k] / max(frames, 1))))
        return float(self.innovation[nearest][: layers_up_to(depth, len(self.layers))].mean())

    def settled_to(self, depth: float) -> float:
        """`settled`, mean over the layers up to a depth."""
        return float(self.settled[: layers_up_to(depth, len(self.layers))].mean())

    def require_fingerprint(self, fingerprint: str) -> None:
        """Refuse another model (`ConfigurationError`)."""
        if fingerprint != self.fingerprint:
            raise ConfigurationError(
                "`profile` is of another model, or of other BatchNorm statistics, than the one "
                f"that is wrapped ({self.fingerprint[:12]} instead of {fingerprint[:12]}). "
                "Calibrate again: sa.calibrate(model, batches)."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file; what was there is replaced when the new file is whole.

        Raises:
            OSError: it cannot be written.
        """
        plain = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _TENSORS
        }
        described = {"format": _FORMAT, "version": str(_VERSION), "profile": json.dumps(plain)}
        tensors = {name: getattr(self, name).float().contiguous() for name in _TENSORS}
        beside = f"{os.fspath(path)}.{os.getpid()}.tmp"
        try:
            save_file(tensors, beside, metadata=described)
            os.replace(beside, path)
        except BaseException as error:
            if os.path.exists(beside):
                os.unlink(beside)
            if isinstance(error, SafetensorError):
                raise OSError(f"{os.fspath(path)}: cannot be written: {error}") from error
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SourceProfile:
        """Read one that `save` wrote.

        Raises:
            DataError: no such file, not a profile, or one that is damaged.
        """
        where = os.fspath(path)
        try:
            with safe_open(where, framework="pt") as file:
                described: Mapping[str, str] = file.metadata() or {}
                if described.get("format") != _FORMAT:
                    raise DataError(f"{where}: not a profile of streamadapt.")
                if described.get("version") != str(_VERSION):
                    raise DataError(
                        f"{where}: a profile of version {described.get('version')}; this is "
                        f"version {_VERSION}. Calibrate again."
                    )
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            plain: dict[str, Any] = json.loads(described["profile"])
            plain["layers"] = tuple((str(n), int(c), float(e)) for n, c, e in plain["layers"])
            made = cls(**plain, **tensors)
        except DataError:
            raise
        except FileNotFoundError as error:
            raise DataError(f"{where}: no such file.") from error
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{where}: cannot be read as a profile: {error}") from error
        made._require_shapes(where)
        return made

    def _require_shapes(self, where: str) -> None:
        channels, sizes = sum(width for _, width, _ in self.layers), len(SIZES)
        shapes = {
            "mean": (channels,),
            "var": (channels,),
            "mean_variance": (sizes, channels),
            "log_variance": (sizes, channels),
            "log_bias": (sizes, channels),
            "freedom": (sizes, len(self.layers)),
            "innovation": (sizes, len(self.layers)),
            "frame_distance": (len(self.layers),),
            "frame_spread": (len(self.layers),),
            "settled": (len(self.layers),),
        }
        for name, shape in shapes.items():
            found = getattr(self, name)
            if tuple(found.shape) != shape or not bool(torch.isfinite(found).all()):
                raise DataError(
                    f"{where}: `{name}` is {list(found.shape)} instead of {list(shape)}, or not "
                    "finite."
                )

    def __repr__(self) -> str:
        return (
            f"SourceProfile(layers={len(self.layers)}, channels={len(self.mean)}, "
            f"frames={self.frames}, settled={self.settled_to(1.0):.4g}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )


_TENSORS = (
    "mean",
    "var",
    "mean_variance",
    "log_variance",
    "log_bias",
    "freedom",
    "innovation",
    "frame_distance",
    "frame_spread",
    "settled",
)
