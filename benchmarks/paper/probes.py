"""Do statistics hold the domain and features the label? Linear probes at every depth.

A probe is a ridge regression onto one-hot answers, fitted on images of the `tune` part and scored
on images of the `test` part. It reads either the statistics of a mini-batch at a BatchNorm layer
(mean and log-variance of every channel), or the layer's output for one image, normalised by the
source's statistics or by those of the image's own domain. Of an output it reads each channel's mean
and log-variance over positions: the means alone could tell no domain, once they are equal in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import streamadapt as sa
from benchmarks.paper.claims import Claim, Outcome, Table, percent
from benchmarks.paper.worlds import World, batches, norm_layers
from streamadapt.replay.bootstrap import Interval, paired_interval

STATISTICS_BATCH = 16
RIDGE = 1e-2  # of the features' mean variance
DEPTHS = 5  # layers shown, evenly spaced

Answers = NDArray[np.int64]


@dataclass(frozen=True)
class Observed:
    """What was seen of one domain's images.

    Attributes:
        statistics: by layer, of mini-batches of mixed content, `[batches, 2 * channels]`.
        of_classes: by layer, of mini-batches of one class each.
        classes: those classes.
        features: by layer, of single images' normalised outputs, `[images, 2 * channels]`.
        labels: of the images.
    """

    statistics: dict[str, NDArray[np.float64]]
    of_classes: dict[str, NDArray[np.float64]]
    classes: Answers
    features: dict[str, NDArray[np.float64]]
    labels: Answers


def ridge_probe(
    x: NDArray[np.float64], y: Answers, x_new: NDArray[np.float64], *, classes: int
) -> Answers:
    """Answers of a ridge regression onto one-hot classes.

    Args:
        x: to fit on, `[N, d]`.
        y: classes, `[N]`.
        x_new: to answer, `[M, d]`.
        classes: how many there are.

    Returns:
        `[M]`.
    """
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-8
    inputs = (x - centre) / scale
    targets = np.eye(classes)[y]
    prior = targets.mean(axis=0)
    gram = inputs.T @ inputs / len(inputs)
    weights = np.linalg.solve(
        gram + RIDGE * np.eye(len(gram)), inputs.T @ (targets - prior) / len(inputs)
    )
    answers: Answers = (((x_new - centre) / scale) @ weights + prior).argmax(axis=1)
    return answers


def experiment(world: World, quick: bool) -> Outcome:
    """Accuracy of probes for domain and for label, over depth."""
    source = world.model()
    domains = ("none", *(world.domains[:2] if quick else world.domains))
    names = norm_layers(source)
    chosen = [
        names[i] for i in np.unique(np.linspace(0, len(names) - 1, DEPTHS).round().astype(int))
    ]
    seen: dict[str, dict[str, list[Observed]]] = {}
    for part in ("tune", "test"):
        labels = world.labels(part)
        for domain in domains:
            images = world.images(domain, part)
            own = sa.adabn(source, list(batches(world.images(domain, "tune"))))
            for kind, model in (("source", source), ("own", own)):
                found = observe(model, chosen, images, labels)
                seen.setdefault(kind, {}).setdefault(part, []).append(found)
    return _outcome(seen, chosen, len(domains))


def observe(model: nn.Module, layers: Sequence[str], images: Tensor, labels: Answers) -> Observed:
    """Statistics of mini-batches and features of images at BatchNorm layers.

    Args:
        model: in evaluation mode.
        layers: names.
        images: `[N, 3, H, W]`.
        labels: `[N]`.
    """
    by_class = np.argsort(labels, kind="stable")
    groups = []
    for label in np.unique(labels):
        rows = by_class[labels[by_class] == label]
        groups += [rows[i : i + STATISTICS_BATCH] for i in range(0, len(rows), STATISTICS_BATCH)]
    groups = [rows for rows in groups if 2 * len(rows) >= max(map(len, groups))]
    mixed = images.split(STATISTICS_BATCH)
    mixed = mixed[:-1] if len(mixed) > 1 and len(mixed[-1]) < STATISTICS_BATCH else mixed
    return Observed(
        statistics=_watched(model, layers, mixed, before=True),
        of_classes=_watched(model, layers, [images[rows] for rows in groups], before=True),
        classes=np.array([labels[rows[0]] for rows in groups], dtype=np.int64),
        features=_watched(model, layers, images.split(128), before=False),
        labels=labels,
    )


def _watched(
    model: nn.Module, layers: Sequence[str], parts: Iterable[Tensor], *, before: bool
) -> dict[str, NDArray[np.float64]]:
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = []
    for name in layers:

        def watch(
            _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name
        ) -> None:
            x = (inputs[0] if before else output).double()
            over = (0, 2, 3) if before else (2, 3)
            variance, mean = torch.var_mean(x, dim=over, correction=0)
            found[name].append(
                torch.cat([mean, (variance + 1e-12).log()], dim=-1).reshape(-1, 2 * x.shape[1])
            )

        handles.append(model.get_submodule(name).register_forward_hook(watch))
    try:
        with torch.inference_mode():
            for part in parts:
                model(part)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def _outcome(
    seen: dict[str, dict[str, list[Observed]]], layers: Sequence[str], domains: int
) -> Outcome:
    classes = int(max(one.labels.max() for one in seen["source"]["tune"])) + 1
    right: dict[tuple[str, str], NDArray[np.bool_]] = {}
    places: dict[str, NDArray[np.int64]] = {}
    for layer in layers:
        for what, (inputs, answers, count) in {
            "domain from statistics": ("statistics", "domain", domains),
            "label from statistics": ("of_classes", "classes", classes),
            "domain": ("features", "domain", domains),
            "label": ("features", "labels", classes),
        }.items():
            for kind in ("source", "own"):
                if "statistics" in what and kind == "own":
                    continue
                x, y, _ = _gathered(seen[kind]["tune"], inputs, answers, layer)
                x_new, y_new, at = _gathered(seen[kind]["test"], inputs, answers, layer)
                name = what if "statistics" in what else f"{what}, {kind} statistics"
                correct = ridge_probe(x, y, x_new, classes=count) == y_new
                right[name, layer] = correct
                places[name] = at
    names = list(dict.fromkeys(name for name, _ in right))
    results = {
        "layers": list(layers),
        "domains": domains,
        "classes": classes,
        "accuracy": {
            name: {layer: float(right[name, layer].mean()) for layer in layers} for name in names
        },
    }

    def difference(one: str, other: str) -> Interval:
        # Of accuracy, over all depths: errors are what is compared, so the rival comes first.
        pairs = [(right[other, layer], right[one, layer], places[one]) for layer in layers]
        return paired_interval(pairs)

    signature = "domain from statistics"
    first = places[signature] == 0  # what answering with the first domain always would get right
    against_chance = [(first, right[signature, layer], places[signature]) for layer in layers]
    claims = [
        Claim(
            "statistics of a mini-batch tell the domain better than chance",
            paired_interval(against_chance),
            below=False,
        ),
        Claim(
            "features tell the domain less once normalised by its own statistics",
            difference("domain, own statistics", "domain, source statistics"),
        ),
        Claim(
            "features tell the label better once normalised by the domain's own statistics",
            difference("label, own statistics", "label, source statistics"),
            below=False,
        ),
    ]
    return Outcome(results, claims)


def tables(results: dict[str, Any]) -> list[Table]:
    """Accuracy of every probe at every depth."""
    accuracy = results["accuracy"]
    rows = [
        [layer, *(percent(found[layer]) for found in accuracy.values())]
        for layer in results["layers"]
    ]
    guesses = (results["domains" if "domain" in name else "classes"] for name in accuracy)
    rows.append(["chance", *(percent(1 / guess) for guess in guesses)])
    return [Table(["probe's accuracy %", *accuracy], rows)]


def _gathered(
    parts: Sequence[Observed], inputs: str, answers: str, layer: str
) -> tuple[NDArray[np.float64], Answers, NDArray[np.int64]]:
    x = [getattr(part, inputs)[layer] for part in parts]
    places = np.repeat(np.arange(len(parts)), [len(one) for one in x])
    if answers == "domain":
        return np.concatenate(x), places, places
    return np.concatenate(x), np.concatenate([getattr(part, answers) for part in parts]), places
