"""What the classifier head of a model sees: its input features and their first two moments."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.errors import DataError, ModelStateError, UnsupportedModelError
from streamadapt.taps import take_inventory
from streamadapt.taps.inventory import named_modules


@dataclass(frozen=True, eq=False)
class FeatureMoments:
    """How many feature vectors were seen, their mean `[D]` and population covariance `[D, D]`."""

    count: float
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> FeatureMoments:
        """Moments of `features`, `[n, D]`, in float64."""
        wide = features.double()
        mean = wide.mean(dim=0)
        centred = wide - mean
        return cls(float(wide.shape[0]), mean, centred.T @ centred / wide.shape[0])

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """The exact moments of both samples together (Chan, Golub, LeVeque, 1979)."""
        share = other.count / (self.count + other.count)
        step = other.mean - self.mean
        between = share * (1.0 - share) * torch.outer(step, step)
        return FeatureMoments(
            self.count + other.count,
            self.mean + share * step,
            torch.lerp(self.covariance, other.covariance, share) + between,
        )


def find_head(model: nn.Module, layer: str) -> nn.Linear:
    """The linear layer of that name, if features in front of it can be aligned.

    Raises:
        UnsupportedModelError: there is none, or it is more than `x W^T + b`.
    """
    modules = dict(named_modules(model))
    module = modules.get(layer)
    if not isinstance(module, nn.Linear):
        linear = ", ".join(name for name, one in modules.items() if isinstance(one, nn.Linear))
        what = "no layer" if module is None else f"a {type(module).__name__}, no nn.Linear,"
        raise UnsupportedModelError(
            f"The model has {what} named {layer!r}. CORAL aligns the input of an nn.Linear; "
            f"this model's: {linear or 'none'}."
        )
    if type(module).forward is not nn.Linear.forward or "weight" not in module._parameters:
        raise UnsupportedModelError(
            f"The head {layer!r} ({type(module).__name__}) is not x W^T + b with a weight of its "
            "own: it is subclassed or parametrised. Merge it into a plain nn.Linear first."
        )
    return module


def head_moments(
    model: nn.Module, batches: Iterable[Any], *, layer: str | None, what: str
) -> tuple[str, FeatureMoments]:
    """Run a model over batches and measure what its head sees; the model is not changed.

    Args:
        model: in eval mode.
        batches: input tensors, or tuples that start with one.
        layer: the head's name; None for the last nn.Linear that the first batch executes.
        what: what the batches are called in messages.

    Returns:
        The head's name, and the moments of its input on the model's device.

    Raises:
        UnsupportedModelError: no head, or one without one feature vector a frame.
        ModelStateError: the model is in training mode.
        DataError: fewer than two frames, or features that are not finite.
    """
    inventory, inner = take_inventory(model), getattr(model, "_orig_mod", model)
    if inventory.obstacles:
        raise UnsupportedModelError(
            f"Features cannot be collected: {' '.join(inventory.obstacles)}"
        )
    if inner.training or any(one.training for one in inventory.layers):
        raise ModelStateError("The model is in training mode. Call model.eval() first.")
    if layer is not None:
        find_head(inner, layer)
    watch = _Watch(copy.deepcopy(inner), layer)
    total: FeatureMoments | None = None
    with torch.inference_mode(False), torch.no_grad():
        for batch in batches:
            frames = batch[0] if isinstance(batch, tuple | list) and len(batch) > 0 else batch
            if not isinstance(frames, Tensor) or frames.dim() < 2:
                raise DataError(
                    f"`{what}` must yield tensors [frames, ...], or tuples that start with one; "
                    f"got {type(frames).__name__}."
                )
            if frames.shape[0] == 0:
                continue
            features = watch.features(frames)
            if not bool(torch.isfinite(features).all()):
                raise DataError(
                    f"A frame of `{what}` has features that are not finite. Leave it out."
                )
            found = FeatureMoments.of(features)
            total = found if total is None else total.merge(found)
    if total is None or watch.layer is None:
        raise DataError(f"`{what}` holds no frames.")
    if total.count < 2:
        raise DataError(f"`{what}` holds a single frame: a covariance needs many. Give more.")
    return watch.layer, total


class _Watch:
    """Sees what enters the linear layers of a model that is its own."""

    def __init__(self, model: nn.Module, layer: str | None) -> None:
        self.layer = layer
        self._model = model
        self._seen: dict[str, list[Tensor]] = {}
        self._order: list[str] = []
        for name, module in named_modules(model):
            if isinstance(module, nn.Linear) and layer in (None, name):
                module.register_forward_pre_hook(self._recorder(name), with_kwargs=True)

    def features(self, frames: Tensor) -> Tensor:
        """What the head sees of one batch, `[items, D]`."""
        self._seen.clear()
        self._order.clear()
        self._model(frames)
        if self.layer is None:
            if not self._order:
                raise UnsupportedModelError(
                    f"{type(self._model).__name__} executes no nn.Linear, so CORAL has no features "
                    "to align. A 1x1 convolution over pooled features does the same as an "
                    "nn.Linear with its weight: put that in its place."
                )
            self.layer = self._order[-1]
            find_head(self._model, self.layer)
        inputs = self._seen.get(self.layer, [])
        if len(inputs) != 1:
            raise UnsupportedModelError(
                f"The head {self.layer!r} is executed {len(inputs)} times in a forward. CORAL "
                "needs one feature vector a frame: name another nn.Linear as `layer=`."
            )
        (features,) = inputs
        if features.dim() != 2 or features.shape[0] % frames.shape[0] != 0:
            raise UnsupportedModelError(
                f"The input of the head {self.layer!r} has shape {list(features.shape)} for a "
                f"batch of {frames.shape[0]}. CORAL needs one feature vector a frame: name an "
                "nn.Linear behind the pooling as `layer=`."
            )
        return features

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._order.append(name)
            self._seen.setdefault(name, []).append((args[0] if args else named["input"]).detach())

        return record
