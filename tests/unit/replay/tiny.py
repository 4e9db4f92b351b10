"""A network, data and a scenario that replay in a blink, importable by worker processes too."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamadapt.replay.data import LabelledData
from streamadapt.replay.policies import FrozenPolicy
from streamadapt.replay.recording import Recording
from streamadapt.replay.result import ReplayResult
from streamadapt.replay.scenario import Domain, PolicySpec, Scenario
from streamadapt.replay.spans import DomainSpan


class Brightness(nn.Module):
    """Tells dark from bright images, by the sign of the first BatchNorm channel."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        level = self.bn(x).mean(dim=(1, 2, 3))
        return torch.stack([-level, level], dim=1)


def brightness() -> Brightness:
    model = Brightness()
    model.bn.running_mean.fill_(0.5)  # type: ignore[union-attr]
    model.bn.running_var.fill_(0.05)  # type: ignore[union-attr]
    return model.eval()


def tiny_data() -> LabelledData:
    rng = np.random.default_rng(0)
    y = np.arange(120, dtype=np.int64) % 2
    x = rng.integers(-20, 20, (120, 8, 8, 3)) + np.where(y, 170, 85)[:, None, None, None]
    return LabelledData(x.astype(np.uint8), y)


def scenario(**changes: Any) -> Scenario:
    values: dict[str, Any] = {
        "name": "tiny",
        "batch_size": 10,
        "domains": (
            Domain("clear", 60),
            Domain("glare", 95, "over_exposure", 4),
            Domain("clear", 40),
        ),
        "policies": (
            PolicySpec("frozen", "frozen"),
            PolicySpec("ema", estimator="EMA", parameters={"momentum": 0.2}),
            PolicySpec("oracle", "adabn"),
        ),
    }
    return Scenario(**{**values, **changes})


def recording(**changes: Any) -> Recording:
    """Four batches of three frames, two domains, labels 0 and 1 in turn; all frames differ."""
    values: dict[str, Any] = {
        "frames": np.arange(12, dtype=np.uint8).repeat(4 * 4 * 3).reshape(12, 4, 4, 3),
        "calibration": np.zeros((0, 1, 1, 3), dtype=np.uint8),
        "labels": np.arange(12) % 2,
        "domains": np.repeat([0, 1], 6),
        "camera_numbers": np.zeros(0, dtype=np.int64),
        "cameras": (),
        "batch_frames": np.full(4, 3),
        "starts": (0, 2),
        "spans": tuple(DomainSpan(name, 0, "none", (), at, 6, 1.0) for name, at in ("a0", "b6")),
        "sha256": "",
    }
    return Recording(**{**values, **changes})


class Told(FrozenPolicy):
    """Answers class 0 and writes down what the protocol tells it, frames by their brightness."""

    def __init__(self, name: str = "told", *, oracle: bool = False, classes: int = 2) -> None:
        super().__init__(name)
        self.oracle = oracle
        self.classes = classes
        self.said: list[Any] = []

    def start(
        self, model: nn.Module, *, calibration: Sequence[Tensor] = (), cameras: Sequence[str] = ()
    ) -> None:
        self.said.append(("start", [len(one) for one in calibration], tuple(cameras)))

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        assert [len(one) for one in frames] == [len(one) for one in frames]  # iterates repeatedly
        self.said.append(("domain", [_places(one) for one in frames]))

    def reset(self) -> None:
        self.said.append(("reset",))

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        assert not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        self.said.append(("adapt", _places(batch), streams))
        return torch.eye(self.classes)[torch.zeros(len(batch), dtype=torch.long)]

    def predict(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        scores = self(batch, streams=streams)
        self.said[-1] = ("predict", *self.said[-1][1:])
        return scores

    def finish(self) -> None:
        self.said.append(("finish",))


def _places(batch: Tensor) -> list[int]:
    return [round(float(frame.mean()) * 255) for frame in batch]


def without_durations(result: ReplayResult | Path) -> str:
    """What must be the same, as text."""
    text = result.to_json() if isinstance(result, ReplayResult) else result.read_text()
    content = copy.copy(json.loads(text))
    assert content.pop("durations")["wall_seconds"] > 0
    return json.dumps(content, sort_keys=True)
