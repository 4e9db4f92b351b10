"""Two sources of handwriting: `python -m benchmarks.paper.natural_pair`.

No corruption was made up here: scikit-learn's UCI digits are those of 13 people in Turkey, MNIST's
those of employees and students in the United States. A network of the shipped kind is trained on
one and reads the other. MNIST comes in two shapes: as it is, and prepared as
UCI's digits were (cut to the ink, counted in blocks), which leaves the writers as the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

import streamadapt as sa
from benchmarks import make_digits
from benchmarks.paper.claims import (
    Claim,
    Outcome,
    Table,
    command_line,
    keep,
    percent,
    points,
    values,
)
from benchmarks.paper.mnist import DownloadError, like_uci, mnist
from benchmarks.paper.worlds import batches, right_answers
from streamadapt.replay.bootstrap import Interval, paired_interval
from streamadapt.replay.digits import normalize, upscale

SEEDS = 5
TRAINING = 900  # images, as many as the shipped network had
NAME = "natural-pair"


@dataclass(frozen=True)
class Handwriting:
    """Digits of one source.

    Attributes:
        name: of the source.
        train: `[N, H, W, 3]` uint8, to train a network or to adapt one.
        train_labels: `[N]`.
        test: `[M, H, W, 3]` uint8, other digits.
        test_labels: `[M]`.
    """

    name: str
    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def uci() -> Handwriting:
    """The halves that the shipped network was trained and is tested on."""
    images, labels = make_digits.images_and_labels()
    train, test = make_digits.split(labels)
    return Handwriting("UCI", images[train], labels[train], images[test], labels[test])


def mnist_halves(
    images: NDArray[np.uint8], labels: NDArray[np.int64], *, prepared: bool, count: int = TRAINING
) -> Handwriting:
    """Two sets of `count` MNIST digits, drawn at random.

    Args:
        images: `[N, 28, 28]` uint8.
        labels: `[N]`.
        prepared: whether they are prepared as UCI's were.
        count: digits in each half.
    """
    order = np.random.default_rng(1998).permutation(len(images))
    train, test = order[:count], order[count : 2 * count]
    shape = like_uci if prepared else np.asarray

    def coloured(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.repeat(shape(images[rows])[..., None], 3, axis=-1)

    name = "MNIST, prepared like UCI's" if prepared else "MNIST"
    return Handwriting(name, coloured(train), labels[train], coloured(test), labels[test])


def experiment(source: Handwriting, target: Handwriting, *, seeds: int) -> Outcome:
    """Error of networks trained on one source, on the other, before and after adaptation."""
    clean, shifted = _frames(source.train), _frames(target.train)
    test, labels = _frames(target.test), target.test_labels
    everywhere = np.zeros(len(labels), np.int64)
    own: list[float] = []
    answers: dict[str, list[NDArray[np.bool_]]] = {}
    for seed in range(seeds):
        network = make_digits.train(source.train, source.train_labels, seed=seed)
        own.append(right_answers(network, _frames(source.test), source.test_labels).mean())
        for name, model in _systems(network, clean, shifted).items():
            answers.setdefault(name, []).append(right_answers(model, test, labels))

    def difference(name: str, against: str) -> Interval:
        pairs = zip(answers[name], answers[against], strict=True)
        return paired_interval([(one, other, everywhere) for one, other in pairs], block_frames=1)

    errors = {name: float(1 - np.mean(found)) for name, found in answers.items()}
    return Outcome(
        {
            "seeds": seeds,
            "images": len(labels),
            "error_at_home": float(1 - np.mean(own)),
            "errors": errors,
            "against_none": {name: values(difference(name, "none")) for name in answers},
        },
        [
            Claim("AdaBN is better than nothing", difference("AdaBN", "none")),
            Claim("CORAL is better than nothing", difference("CORAL", "none")),
            Claim("AdaBN is better than CORAL", difference("AdaBN", "CORAL")),
            Claim("AdaBN + CORAL is better than AdaBN", difference("AdaBN + CORAL", "AdaBN")),
        ],
    )


def tables(results: dict[str, Any]) -> list[Table]:
    """Error of every system."""
    rows = [["none, at home", percent(results["error_at_home"]), ""]]
    for name, error in results["errors"].items():
        against = "" if name == "none" else points(results["against_none"][name])
        rows.append([name, percent(error), against])
    return [Table(["system", "error %", "against none, points (95 %)"], rows)]


def _systems(network: nn.Module, clean: Tensor, shifted: Tensor) -> dict[str, nn.Module]:
    adapted = sa.adabn(network, list(batches(shifted)))
    calibrated = sa.alignment.Coral.calibrate(network, list(batches(clean)))
    return {
        "none": network,
        "CORAL": sa.alignment.coral(network, calibrated, list(batches(shifted))),
        "AdaBN": adapted,
        "AdaBN + CORAL": sa.alignment.coral(adapted, calibrated, list(batches(shifted))),
    }


def _frames(images: NDArray[np.uint8]) -> Tensor:
    return normalize(upscale(images))


def main() -> int:
    """Run it."""
    arguments = command_line(NAME, "Two sources of handwriting.").parse_args()
    try:
        images, labels = mnist()
    except DownloadError as error:
        print(error)
        return 1
    ours = uci()
    for prepared in (False, True):
        theirs = mnist_halves(images, labels, prepared=prepared)
        for source, target in ((ours, theirs), (theirs, ours)):
            title = f"{source.name} to {target.name}"
            outcome = experiment(source, target, seeds=1 if arguments.quick else SEEDS)
            output = None if arguments.quick else arguments.output
            keep(NAME, title, title, outcome, tables, output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
