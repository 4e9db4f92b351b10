"""How far apart are a layer's inputs in source and target, before and after adaptation?

Symmetric Kullback-Leibler divergence between Gaussians of each channel's mean and variance, mean
over channels (the paper's measure): source images through the deployed network against target
images through the deployed network (before), or through the adapted one (after). The input of the
first BatchNorm layer is the same in both: adaptation acts from the second on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

import streamadapt as sa
from benchmarks.paper.claims import Claim, Outcome, Table
from benchmarks.paper.worlds import World, batches, norm_layers
from streamadapt.replay.bootstrap import Interval

Statistics = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def symmetric_divergence(
    one: tuple[NDArray[np.float64], NDArray[np.float64]],
    other: tuple[NDArray[np.float64], NDArray[np.float64]],
    *,
    eps: float,
) -> float:
    """`KL(p, q) + KL(q, p)` of Gaussians, mean over channels, in nats.

    Args:
        one: mean and variance, `[channels]` each.
        other: the same.
        eps: added to variances, as the layer does.
    """
    (mean, var), (mean_, var_) = one, other
    var, var_ = var + eps, var_ + eps
    square = (mean - mean_) ** 2
    both = (var + square) / (2 * var_) + (var_ + square) / (2 * var) - 1
    return float(both.mean())


def input_statistics(model: nn.Module, images: Iterable[Tensor]) -> Statistics:
    """Mean and variance of every BatchNorm layer's input, `[channels]` each."""
    sums: dict[str, list[Tensor]] = {}
    handles = []
    for name in norm_layers(model):

        def watch(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            x = inputs[0].double()
            over = (0, 2, 3)
            count = torch.full((x.shape[1],), float(x.numel() // x.shape[1]), dtype=x.dtype)
            found = torch.stack([count, x.sum(over), x.square().sum(over)])
            sums.setdefault(name, []).append(found)

        handles.append(model.get_submodule(name).register_forward_pre_hook(watch))
    try:
        with torch.inference_mode():
            for batch in images:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, parts in sums.items():
        count, total, squares = torch.stack(parts).sum(dim=0).numpy()
        mean = total / count
        found[name] = (mean, np.maximum(squares / count - mean**2, 0.0))
    return found


def mean_interval(values: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of a few values with its 95 % bootstrap interval."""
    found = np.asarray(values, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(len(found), size=(draws, len(found)))
    low, high = np.quantile(found[rows].mean(axis=1), [0.025, 0.975])
    return Interval(float(low), float(found.mean()), float(high))


def experiment(world: World, quick: bool) -> Outcome:
    """Divergence over depth, before and after."""
    source = world.model()
    domains = world.domains[:2] if quick else world.domains
    names = norm_layers(source)
    at_home = input_statistics(source, batches(world.images("none", "test")))
    before, after = np.zeros((2, len(domains), len(names)))
    for row, domain in enumerate(domains):
        adapted = sa.adabn(source, list(batches(world.images(domain, "tune"))))
        for model, result in ((source, before), (adapted, after)):
            found = input_statistics(model, batches(world.images(domain, "test")))
            for column, name in enumerate(names):
                eps = source.get_submodule(name).eps
                assert isinstance(eps, float)
                result[row, column] = symmetric_divergence(at_home[name], found[name], eps=eps)
    # Of logarithms: a divergence ten times smaller counts alike in every layer.
    change = np.log((after[:, 1:] + 1e-12) / (before[:, 1:] + 1e-12))
    last = np.log((after[:, -1] + 1e-12) / (before[:, -1] + 1e-12))
    claims = [
        Claim(
            "divergence falls from the second layer on (mean of logarithms)",
            mean_interval(change.mean(axis=1)),
            shares=False,
        ),
        Claim("divergence falls at the last layer (logarithm)", mean_interval(last), shares=False),
    ]
    results = {
        "domains": list(domains),
        "layers": names,
        "before": before.mean(axis=0).tolist(),
        "after": after.mean(axis=0).tolist(),
    }
    return Outcome(results, claims)


def tables(results: dict[str, Any]) -> list[Table]:
    """Divergence of every layer."""
    rows = [
        [name, f"{before:.3f}", f"{after:.3f}", f"{after / before:.2f}"]
        for name, before, after in zip(
            results["layers"], results["before"], results["after"], strict=True
        )
    ]
    return [Table(["divergence of the input of", "before", "after", "ratio"], rows)]
