"""Rescale or decorrelate? `python -m benchmarks.paper.whitening`.

AdaBN gives every channel the mean and the variance that its weights expect. Group whitening does so
for groups of channels together: the input of a BatchNorm layer is whitened with the target's
covariance and coloured with the source's, `x' = C_s^1/2 C_t^-1/2 (x - mu_t) + mu_s`, before the
source's normalisation. Groups of one channel are AdaBN.

With the statistics of a whole set, the map is linear and folds into the convolution before it. With
those of each batch, it costs an eigendecomposition a group, layer and batch, and noise.

Reference:
    Huang et al., "Decorrelated Batch Normalization", 2018, arXiv 1804.08450; Roy et al.,
    "Unsupervised Domain Adaptation using Feature-Whitening and Consensus Loss", 2019, arXiv
    1903.03215 (groups of four).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.paper.claims import Claim, Outcome, Table, percent, run
from benchmarks.paper.worlds import (
    World,
    batches,
    domain_indices,
    joined,
    norm_layers,
    right_answers,
)
from benchmarks.record import Ratios, paired_ratios
from streamadapt.replay.bootstrap import Interval, paired_interval

GROUPS = (1, 2, 4, 8, 16)
BATCHES = (4, 8, 16, 32, 64, 128)
SHOWN = 4  # channels in a group, of the claims: what the whitening literature uses
TIMED_BATCH = 64
ROUNDS = 21


@dataclass(frozen=True)
class GroupMoments:
    """Mean and covariance of a layer's input.

    Attributes:
        mean: `[channels]`.
        covariance: `[groups, size, size]`, over the number of values.
    """

    mean: Tensor
    covariance: Tensor


def group_moments(x: Tensor, size: int) -> GroupMoments:
    """Moments of an input `[N, C, H, W]` in groups of `size` neighbouring channels."""
    channels = x.shape[1]
    values = x.transpose(0, 1).reshape(channels // size, size, -1).double()
    mean = values.mean(dim=2, keepdim=True)
    centred = values - mean
    return GroupMoments(mean.flatten(), centred @ centred.mT / values.shape[2])


def pooled(parts: Iterable[tuple[int, GroupMoments]]) -> GroupMoments:
    """Moments of several sets together, each with its number of values."""
    found = list(parts)
    total = sum(count for count, _ in found)
    mean = torch.stack([count * one.mean for count, one in found]).sum(dim=0) / total
    shape = found[0][1].covariance.shape[:2]
    covariance = torch.zeros_like(found[0][1].covariance)
    for count, one in found:
        away = (one.mean - mean).reshape(shape)
        between = away[:, :, None] * away[:, None, :]
        covariance += count / total * (one.covariance + between)
    return GroupMoments(mean, covariance)


def aligning_map(source: Tensor, target: Tensor, *, eps: float) -> Tensor:
    """`C_s^1/2 C_t^-1/2`, `[groups, size, size]`, with `eps` added to both diagonals."""
    return _power(source, 0.5, eps) @ _power(target, -0.5, eps)


class GroupWhitening:
    """A network whose BatchNorm inputs are aligned with the source in groups of channels.

    Args:
        model: in evaluation mode; it is not changed.
        size: channels in a group; it must divide the width of every layer.
        clean: source images in batches: the correlations that the weights expect. Variances are
            those that the layers hold.
    """

    def __init__(self, model: nn.Module, *, size: int, clean: Iterable[Tensor]) -> None:
        self.model = model
        self.size = size
        self._layers = {
            name: cast(nn.BatchNorm2d, model.get_submodule(name)) for name in norm_layers(model)
        }
        self._source: dict[str, GroupMoments] = {}
        self._target: dict[str, GroupMoments] = {}
        found = self._collect(clean, "as it is")
        for name, layer in self._layers.items():
            self._source[name] = _with_variances(found[name], layer)

    def adapt(self, target: Iterable[Tensor]) -> None:
        """Take a target set's statistics, each layer's under layers aligned batch by batch."""
        self._target = self._collect(target, "batch")

    def answers(
        self, images: Tensor, labels: NDArray[np.int64], *, batch: int | None = None
    ) -> NDArray[np.bool_]:
        """Which images are answered rightly, bool `[N]`.

        Args:
            images: `[N, 3, H, W]`.
            labels: `[N]`.
            batch: align every batch of this size by its own statistics; None aligns by those of
                the set last adapted to.
        """
        with self.aligned("set" if batch is None else "batch"), torch.inference_mode():
            answers = [
                self.model(part).argmax(dim=1) for part in batches(images, size=batch or 128)
            ]
        correct: NDArray[np.bool_] = torch.cat(answers).numpy() == labels
        return correct

    @contextmanager
    def aligned(self, by: Literal["set", "batch"]) -> Iterator[None]:
        """While it is open, forwards of the model are aligned."""
        maps = {}
        if by == "set":
            maps = {name: self._map(name, self._target[name]) for name in self._layers}
        handles = []
        for name, layer in self._layers.items():

            def align(
                _: nn.Module, inputs: tuple[Tensor, ...], name: str = name
            ) -> tuple[Tensor, ...]:
                (x,) = inputs
                if by == "batch":
                    own = group_moments(x, self.size)
                    return (_apply(x, own.mean, self._map(name, own), self._source[name].mean),)
                return (_apply(x, self._target[name].mean, maps[name], self._source[name].mean),)

            handles.append(layer.register_forward_pre_hook(align))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _map(self, name: str, target: GroupMoments) -> Tensor:
        eps = self._layers[name].eps
        return aligning_map(self._source[name].covariance, target.covariance, eps=eps)

    def _collect(
        self, images: Iterable[Tensor], by: Literal["as it is", "batch"]
    ) -> dict[str, GroupMoments]:
        parts: dict[str, list[tuple[int, GroupMoments]]] = {name: [] for name in self._layers}
        handles = []
        for name, layer in self._layers.items():

            def watch(
                _: nn.Module, inputs: tuple[Tensor, ...], name: str = name
            ) -> tuple[Tensor, ...] | None:
                (x,) = inputs
                own = group_moments(x, self.size)
                parts[name].append((x.numel() // x.shape[1], own))
                if by == "as it is":
                    return None
                return (_apply(x, own.mean, self._map(name, own), self._source[name].mean),)

            handles.append(layer.register_forward_pre_hook(watch))
        try:
            with torch.inference_mode():
                for batch in images:
                    self.model(batch)
        finally:
            for handle in handles:
                handle.remove()
        return {name: pooled(found) for name, found in parts.items()}


def experiment(world: World, quick: bool) -> Outcome:
    """Error and cost over the size of a group, by whole sets and by batches."""
    source = world.model()
    domains = world.domains[:2] if quick else world.domains
    labels = world.labels("test")
    places = domain_indices(len(domains), len(labels))
    groups = GROUPS[:3] if quick else GROUPS
    sizes = BATCHES[1:2] if quick else BATCHES
    clean = world.images("none", "tune")
    targets = [world.images(name, "tune") for name in domains]
    tests = [world.images(name, "test") for name in domains]
    frozen = joined([right_answers(source, one, labels) for one in tests])
    by_set: dict[int, NDArray[np.bool_]] = {}
    by_batch: dict[tuple[int, int], NDArray[np.bool_]] = {}
    for group in groups:
        network = GroupWhitening(source, size=group, clean=batches(clean))
        parts = []
        for target, test in zip(targets, tests, strict=True):
            network.adapt(batches(target))
            parts.append(network.answers(test, labels))
        by_set[group] = joined(parts)
        for size in sizes:
            found = [network.answers(test, labels, batch=size) for test in tests]
            by_batch[group, size] = joined(found)
    cost = costs(source, clean, groups, rounds=3 if quick else ROUNDS)

    def error(answers: NDArray[np.bool_]) -> float:
        return float(1 - answers.mean())

    def difference(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Interval:
        return paired_interval([(one, other, places)])

    smallest, largest = min(sizes), max(sizes)
    claims = []
    for group in (SHOWN, max(groups)):
        what = f"whitening groups of {group}"
        claims += [
            Claim(
                f"{what} by the whole set is better than rescaling",
                difference(by_set[group], by_set[1]),
            ),
            Claim(
                f"{what} by batches of {largest} is better than rescaling",
                difference(by_batch[group, largest], by_batch[1, largest]),
            ),
            Claim(
                f"{what} by batches of {smallest} is worse than rescaling",
                difference(by_batch[group, smallest], by_batch[1, smallest]),
                below=False,
            ),
        ]
    results = {
        "domains": list(domains),
        "frozen": error(frozen),
        "whole_set": {str(group): error(by_set[group]) for group in groups},
        "batch": {
            str(group): {str(size): error(by_batch[group, size]) for size in sizes}
            for group in groups
        },
        "step_time_over_frozen": {str(g): [r.p10, r.median, r.p90] for g, r in cost.items()},
    }
    return Outcome(results, claims)


def tables(results: dict[str, Any]) -> list[Table]:
    """Error and cost over the size of a group."""
    by_batch = results["batch"]
    sizes = sorted(next(iter(by_batch.values())), key=int)
    rows = [["frozen", percent(results["frozen"]), *("" for _ in sizes), "1.00"]]
    for group in sorted(results["whole_set"], key=int):
        whole = results["whole_set"][group]
        cells = [percent(by_batch[group][size]) for size in sizes]
        _, time_ratio, _ = results["step_time_over_frozen"][group]
        rows.append([group, percent(whole), *cells, f"{time_ratio:.2f}"])
    header = ["channels in a group", "whole set, error %", *(f"batches of {s}" for s in sizes)]
    return [Table([*header, "time × by batches"], rows)]


def costs(
    model: nn.Module, images: Tensor, groups: tuple[int, ...], *, rounds: int
) -> dict[int, Ratios]:
    """Step time by batch statistics over the frozen network's, interleaved.

    Groups of one are PyTorch's own normalisation by batch statistics.
    """
    batch = images[:TIMED_BATCH]
    aligned = {
        group: GroupWhitening(model, size=group, clean=[batch]) for group in groups if group > 1
    }
    found = {}
    for group in groups:
        own, before, after = [], [], []
        for _ in range(rounds):
            before.append(_seconds(model, batch))
            with aligned[group].aligned("batch") if group > 1 else _training(model):
                own.append(_seconds(model, batch))
            after.append(_seconds(model, batch))
        found[group] = paired_ratios(own, before, after)
    return found


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    # Batch statistics normalise, the stored ones stay as they are.
    norms = [cast(nn.BatchNorm2d, model.get_submodule(name)) for name in norm_layers(model)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum


def _seconds(model: nn.Module, batch: Tensor) -> float:
    with torch.inference_mode():
        start = time.perf_counter()
        model(batch)
        return time.perf_counter() - start


def _with_variances(found: GroupMoments, layer: nn.BatchNorm2d) -> GroupMoments:
    # The source's correlations, at the variances that the layer was trained to.
    assert layer.running_mean is not None
    assert layer.running_var is not None
    deviation = found.covariance.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
    wanted = layer.running_var.double().sqrt().reshape(deviation.shape)
    ratio = wanted / deviation
    covariance = found.covariance * ratio[:, :, None] * ratio[:, None, :]
    covariance.diagonal(dim1=1, dim2=2).copy_(wanted.square())
    return GroupMoments(layer.running_mean.double(), covariance)


def _power(covariance: Tensor, exponent: float, eps: float) -> Tensor:
    identity = torch.eye(covariance.shape[1], dtype=covariance.dtype)
    values, vectors = torch.linalg.eigh(covariance + eps * identity)
    powers = values.clamp_min(eps) ** exponent
    return (vectors * powers[:, None, :]) @ vectors.mT


def _apply(x: Tensor, away: Tensor, matrix: Tensor, towards: Tensor) -> Tensor:
    groups, size, _ = matrix.shape
    weight = matrix.reshape(groups * size, size, 1, 1)
    bias = towards - (matrix @ away.reshape(groups, size, 1)).flatten()
    return nn.functional.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), groups=groups)


def main() -> int:
    """Run it."""
    return run(
        "whitening",
        "Rescaling channels against whitening groups of them.",
        experiment,
        tables,
        default=("digits", "cifar10-resnet20"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
