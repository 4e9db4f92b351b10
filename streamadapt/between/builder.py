"""How the engine for batches in between is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.errors import ConfigurationError

Build = Callable[[nn.Module], Callable[[Any], Any]]


@dataclass(frozen=True, eq=False)
class Builder:
    """Makes a callable out of a plain model, and says what it is good for.

    Attributes:
        build: from a model in eval mode, with BatchNorms folded where that can be done, to what
            answers like it. Runs in a thread of its own, each time on a model of its own.
        name: what it is called in events.
        example: only batches of its shape, dtype and device are answered by it; None: all are.
        live: what `build` returns reads the model's parameters and buffers at every call, so that
            it need not be built again: they are written in place.
        moved: how far statistics move before it is built again: location-scale distance, mean over
            layers. Beyond three times as far it is not used any more.
    """

    build: Build
    name: str = "engine"
    example: Tensor | None = None
    live: bool = False
    moved: float = 0.003

    def __post_init__(self) -> None:
        if not self.moved > 0.0:
            raise ConfigurationError(f"`moved` must be positive, got {self.moved}.")

    def __repr__(self) -> str:
        shape = "" if self.example is None else f", {list(self.example.shape)}"
        return f"{self.name}{shape}"


def ordinary_copy(example: Tensor) -> Tensor:
    """A copy that is no inference tensor, whatever mode it is made in."""
    with torch.inference_mode(False), torch.no_grad():
        return example.clone()


def check_between(*, adapt_every: int, max_streams: int, timing: str, aligned: bool) -> None:
    """Refuse what an engine in between cannot do.

    Raises:
        ConfigurationError: naming it.
    """
    problem = None
    if adapt_every == 1:
        problem = "no batch is in between with `adapt_every=1`. Give it 2 or more"
    elif max_streams > 1:
        problem = "it holds the statistics of one stream. Use one processor a stream"
    elif timing != "lagged":
        problem = 'the model holds the source\'s statistics in synchronous timing. Use "lagged"'
    elif aligned:
        problem = "the aligned head changes with every batch. Leave one of the two out"
    if problem is not None:
        raise ConfigurationError(f"`between` cannot be used: {problem}.")


def builder_of(between: Builder | Build) -> Builder:
    """A plain function as a builder.

    Raises:
        ConfigurationError: it is no function.
    """
    if isinstance(between, Builder):
        return between
    if isinstance(between, nn.Module) or not callable(between):
        raise ConfigurationError(
            "`between` must be a function from a plain model to what answers like it, or one of "
            f"`sa.between`, got {type(between).__name__}."
        )
    return Builder(between, name=getattr(between, "__name__", type(between).__name__))
