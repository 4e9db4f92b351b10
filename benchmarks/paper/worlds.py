"""Networks, images and domains of the paper's experiments: those of the lab, as plain tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.lab import worlds as lab
from benchmarks.models import normalize
from streamadapt.replay.corruptions import corrupt
from streamadapt.replay.data import LabelledData, load_data
from streamadapt.replay.models import load_model
from streamadapt.replay.split import Split

BATCH = 128


@dataclass(frozen=True)
class World:
    """A trained network and the domains that it meets.

    Attributes:
        name: as on the command line.
        title: for tables.
        setting: the lab's description of it.
        limit: at most so many images of a part, so that an experiment takes minutes.
    """

    name: str
    title: str
    setting: lab.World
    limit: int

    @property
    def domains(self) -> tuple[str, ...]:
        """The corruptions that results are from."""
        return self.setting.tested

    @property
    def at_hand(self) -> bool:
        """Whether its images are where they should be."""
        return self.setting.data.startswith("builtin:") or Path(self.setting.data).exists()

    @cached_property
    def data(self) -> LabelledData:
        """All images, in the size that the network takes."""
        return load_data(self.setting.data, resize=self.setting.settings.get("resize"))

    @cached_property
    def split(self) -> Split:
        """The committed one."""
        return Split.load(self.setting.split)

    def model(self) -> nn.Module:
        """The trained network, in evaluation mode."""
        return load_model(self.setting.model).eval()

    def labels(self, part: str) -> NDArray[np.int64]:
        """Labels of a part, in the order of `images`."""
        return self.data.y[self._chosen(part)]

    def images(self, domain: str, part: str, *, seed: int = 0) -> Tensor:
        """Images of a part as a domain shows them, `[N, 3, H, W]`, normalised.

        Args:
            domain: name of a corruption; `none` is the source.
            part: `calibrate`, `tune` or `test`.
            seed: of the corruption's randomness.
        """
        rng = np.random.default_rng([seed, *domain.encode(), len(part)])
        raw = corrupt(
            self.data.x[self._chosen(part)], domain, severity=self.setting.severity, rng=rng
        )
        settings = self.setting.settings
        return normalize(raw, mean=settings["mean"], std=settings["std"])

    def _chosen(self, part: str) -> NDArray[np.int64]:
        indices = self.split.part(part)
        if len(indices) <= self.limit:
            return indices
        keep = np.random.default_rng(0).permutation(len(indices))[: self.limit]
        return indices[np.sort(keep)]


def worlds(*, quick: bool = False) -> dict[str, World]:
    """The worlds by name.

    Args:
        quick: few images, to see that an experiment runs.
    """
    limits = {"digits": 512, "cifar10-resnet20": 512, "imagenet-mobilenetv2": 202}
    found = lab.worlds()
    return {
        name: World(name, found[name].title, found[name], 48 if quick else limit)
        for name, limit in limits.items()
    }


def batches(images: Tensor, *, size: int = BATCH) -> Iterator[Tensor]:
    """Images in batches."""
    return iter(images.split(size))


def right_answers(model: nn.Module, images: Tensor, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images a network answers rightly, bool `[N]`."""
    with torch.inference_mode():
        answers = torch.cat([model(batch).argmax(dim=1) for batch in batches(images)])
    correct: NDArray[np.bool_] = answers.numpy() == labels
    return correct


def norm_layers(model: nn.Module) -> list[str]:
    """Names of the BatchNorm layers, in the order of registration."""
    kind = nn.modules.batchnorm._BatchNorm
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def domain_indices(count: int, images: int) -> NDArray[np.int64]:
    """The domain of each answer where `count` domains of `images` answers follow one another."""
    return np.repeat(np.arange(count), images)


def joined(answers: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Answers of several domains, one after the other."""
    return np.concatenate(answers)
