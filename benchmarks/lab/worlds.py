"""The worlds of the lab: a network, its images, their split, and the streams that are made of them.

Every world has the same seven streams. Only images of the `tune` part and corruptions of the design
set choose settings; results are from the `test` part, with the corruptions that were kept back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.models import CIFAR_CLASSES, IMAGENET_MEAN, IMAGENET_STD, data_dir
from streamadapt.replay import Domain, PolicySpec, Scenario
from streamadapt.replay.corruptions import DESIGN_CORRUPTIONS

Part = Literal["tune", "test"]
SPLITS = Path(__file__).resolve().parent / "splits"
RECURRING_VISITS = 20
DIRICHLET_ALPHA = 0.1

STREAMS: Mapping[str, Mapping[str, Any]] = {
    "i.i.d., 64": {"batch_size": 64},
    "correlated, 16": {"batch_size": 16, "order": "dirichlet"},
    "mixed, 64": {"batch_size": 64, "arrangement": "mixed"},
    "mixed correlated, 64": {"batch_size": 64, "arrangement": "mixed", "order": "dirichlet"},
    "recurring ×20, 16": {
        "batch_size": 16,
        "order": "dirichlet",
        "visits": RECURRING_VISITS,
    },
    "i.i.d., 1": {"batch_size": 1},
    "correlated, 1": {"batch_size": 1, "order": "dirichlet"},
}
"""Name to what a scenario needs besides the world's own settings."""

TESTED = (*DESIGN_CORRUPTIONS, "shot_noise", "motion_blur", "over_exposure", "pixelate")

TUNING_STREAMS = ("i.i.d., 64", "correlated, 16")


@dataclass(frozen=True)
class World:
    """A network and its images.

    Attributes:
        name: short, for files.
        title: for tables.
        model: `package.module:factory`.
        data: what `load_data` takes.
        split: the committed index.
        severity: of every corruption.
        domain_frames: frames a domain, by stream; the first that fits: the stream's name, its batch
            size as text, or "".
        tuning_frames: frames a domain while tuning.
        recurring_domains: corruptions that come back.
        settings: further keys of every scenario.
        imagenet: whether published methods take their ImageNet defaults.
    """

    name: str
    title: str
    model: str
    data: str
    split: str
    severity: int
    domain_frames: Mapping[str, int]
    tuning_frames: int
    recurring_domains: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tested: tuple[str, ...] = TESTED
    tuned: tuple[str, ...] = DESIGN_CORRUPTIONS
    imagenet: bool = False

    def scenario(
        self, stream: str, *, part: Part, seed: int, policies: tuple[PolicySpec, ...]
    ) -> Scenario:
        """One of the `STREAMS` in this world."""
        settings = {**STREAMS[stream], **self.settings}
        frames = self._frames(stream, settings["batch_size"])
        names: tuple[str, ...] = ("none", *(self.tuned if part == "tune" else self.tested))
        if part == "tune":
            frames = self.tuning_frames
        elif "visits" in settings:
            names = self.recurring_domains
        return Scenario(
            f"{self.title}: {stream}",
            tuple(Domain(name, frames, name, severity=self.severity) for name in names),
            policies,
            model=self.model,
            data=self.data,
            split=self.split,
            part=part,
            seed=seed,
            dirichlet_alpha=DIRICHLET_ALPHA,
            **settings,
        )

    def _frames(self, stream: str, batch_size: int) -> int:
        for key in (stream, str(batch_size), ""):
            if key in self.domain_frames:
                return self.domain_frames[key]
        raise KeyError(stream)


def worlds() -> dict[str, World]:
    """All of them by name; those other than the digits need the data that `data_dir` names."""
    cifar = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    images = str((data_dir() / "cifar10" / "images.npz").resolve())
    pictures = str((data_dir() / "imagenet" / "images").resolve())
    back = ("fog", "low_light", "gaussian_noise", "contrast")
    every = [
        World(
            name="digits",
            title="digits",
            model="streamadapt.replay.digits:digits_network",
            data="builtin:digits",
            split="builtin:digits",
            severity=4,
            domain_frames={"": 320, "1": 160, "recurring ×20, 16": 128},
            tuning_frames=256,
            recurring_domains=back,
            settings={"resize": (24, 24), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        ),
        World(
            name="cifar10-resnet20",
            title="CIFAR-10, ResNet-20",
            model="benchmarks.models:load_resnet20",
            data=images,
            split=str(SPLITS / "cifar10.json"),
            severity=3,
            domain_frames={"": 256, "1": 96, "recurring ×20, 16": 128},
            tuning_frames=192,
            recurring_domains=back,
            settings=cifar,
        ),
        World(
            name="cifar10-resnet56",
            title="CIFAR-10, ResNet-56",
            model="benchmarks.models:load_resnet56",
            data=images,
            split=str(SPLITS / "cifar10.json"),
            severity=3,
            domain_frames={"": 128, "1": 16, "recurring ×20, 16": 48},
            tuning_frames=96,
            recurring_domains=back,
            settings=cifar,
        ),
        World(
            name="imagenet-mobilenetv2",
            title="ImageNet subset, MobileNetV2",
            model="benchmarks.models:load_mobilenet_v2",
            data=pictures,
            split=str(SPLITS / "imagenet.json"),
            severity=3,
            domain_frames={
                "": 64,  # a domain of a mixed batch has no length
                "i.i.d., 64": 192,
                "correlated, 16": 192,
                "1": 40,
                "recurring ×20, 16": 32,
            },
            tuning_frames=64,
            recurring_domains=("fog", "low_light"),
            tested=("fog", "low_light", "over_exposure", "motion_blur"),
            tuned=("fog", "low_light"),
            settings={**cifar, "resize": (224, 224), "class_groups": 10},
            imagenet=True,
        ),
    ]
    return {world.name: world for world in every}


def classes(world: World) -> int:
    """Number of classes that the world's network tells apart."""
    return 1000 if world.imagenet else len(CIFAR_CLASSES)
