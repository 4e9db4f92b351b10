"""Worlds that come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.drift import Alarms
from streamadapt.errors import ConfigurationError
from streamadapt.events import (
    DomainForgotten,
    DomainLearned,
    DomainRecalled,
    DriftDetected,
    Event,
    GuardFailed,
    SettlingPassed,
)

WORLDS = {"source": (1.0, 0.0), "fog": (0.3, 2.0), "night": (0.4, -2.0), "glare": (2.5, 1.0)}


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 5),
    )
    with torch.no_grad():
        for _ in range(50):
            model.train()(frames("source", int(torch.randint(10**6, ()))))
    return model.eval()


def frames(world: str, seed: int, count: int = 16) -> Tensor:
    scale, offset = WORLDS[world]
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, 3, 8, 8, generator=generator) + offset


class Camera:
    """A stream that goes from world to world."""

    def __init__(self, **kwargs: Any) -> None:
        self.events: list[Event] = []
        arguments: dict[str, Any] = {
            "domains": 2,
            "alarms": None,
            "class_scores": False,  # of a random net they say nothing
            **kwargs,
        }
        self.processor = sa.StreamProcessor(net(), on_event=self.events.append, **arguments)
        self.step = 0

    def visit(self, world: str, batches: int = 10) -> None:
        for _ in range(batches):
            self.processor(frames(world, self.step), pts_seconds=self.step * 16 / 25)
            self.step += 1

    def told(self, kind: type[Event]) -> list[Any]:
        return [one for one in self.events if isinstance(one, kind)]


def test_a_world_that_comes_back_is_recognised_and_not_settled_for_anew() -> None:
    camera = Camera()
    for world in ("fog", "night", "fog", "night"):
        camera.visit(world)
    assert [one.domain for one in camera.told(DomainLearned)] == ["domain-1", "domain-2"]
    assert [one.domain for one in camera.told(DomainRecalled)] == ["domain-1", "domain-2"]
    without = Camera(domains=0)
    for world in ("fog", "night", "fog", "night"):
        without.visit(world)
    assert not without.told(DomainLearned)
    assert len(camera.told(SettlingPassed)) < len(without.told(SettlingPassed))
    assert camera.processor.domains() == ("domain-1", "domain-2")
    assert camera.processor.phase() == "following"


@pytest.mark.parametrize("domains", [0, 2])
def test_every_change_of_world_is_one_alarm(domains: int) -> None:
    """Whether what comes is new, known, or the source."""
    camera = Camera(domains=domains, alarms=Alarms())
    worlds = ("source", "fog", "night", "fog", "source", "night")
    for world in worlds:
        camera.visit(world)
    alarms = [one.step for one in camera.told(DriftDetected)]
    assert len(alarms) == len(worlds) - 1
    for alarm, begins in zip(alarms, range(10, 60, 10), strict=True):
        assert begins < alarm < begins + 10


def test_who_puts_a_stream_elsewhere_brings_no_alarm() -> None:
    camera = Camera(domains=0, alarms=Alarms())
    camera.visit("fog")
    camera.processor.rollback("source")
    camera.visit("night")
    assert not camera.told(DriftDetected)
    camera.visit("fog")
    assert len(camera.told(DriftDetected)) == 1


def test_a_world_never_seen_is_not_taken_for_a_known_one() -> None:
    camera = Camera()
    for world in ("fog", "night", "glare"):
        camera.visit(world)
    assert not camera.told(DomainRecalled)


def test_the_one_longest_out_of_use_goes() -> None:
    camera = Camera()
    for world in ("fog", "night", "fog", "glare", "source"):
        camera.visit(world)
    assert [one.domain for one in camera.told(DomainForgotten)] == ["domain-2"]
    assert camera.processor.domains() == ("domain-1", "domain-3")


def test_a_domain_can_be_given_a_name_and_outlives_others() -> None:
    camera = Camera()
    camera.visit("fog")
    camera.processor.remember("fog")
    for world in ("night", "glare", "night", "fog"):
        camera.visit(world)
    assert "fog" in camera.processor.domains()
    assert camera.told(DomainRecalled)[-1].domain == "fog"


def test_streams_have_domains_of_their_own() -> None:
    camera = Camera(max_streams=2)
    for number, (a, b) in enumerate([("fog", "night"), ("night", "night"), ("fog", "night")]):
        for step in range(10):
            both = torch.cat([frames(a, 100 * number + step), frames(b, 5000 + step)])
            camera.processor(
                both, streams=["a"] * 16 + ["b"] * 16, pts_seconds=(10 * number + step) * 16 / 25
            )
    assert [(one.stream, one.domain) for one in camera.told(DomainRecalled)] == [("a", "domain-1")]
    assert camera.processor.domains("b") == ()
    camera.processor.drop_stream("a")
    camera.processor(frames("fog", 1), streams="c", pts_seconds=99.0)
    assert camera.processor.domains("c") == ()


def test_domains_of_another_source_are_gone() -> None:
    camera = Camera()
    camera.visit("fog")
    camera.visit("night")
    assert camera.processor.domains()
    camera.processor.model.load_state_dict(net().state_dict())
    camera.visit("night", 1)
    assert camera.processor.domains() == ()


def test_without_an_estimator_that_settles_there_is_nothing_to_remember() -> None:
    camera = Camera(estimator=sa.estimators.EMA())
    camera.visit("fog", 2)
    with pytest.raises(ConfigurationError, match="not settle"):
        camera.processor.remember("fog")


def test_a_memory_that_fails_is_told_and_the_stream_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera = Camera()

    def fails(*_: Any) -> None:
        raise MemoryError("no room for another world")

    monkeypatch.setattr("streamadapt.worlds.Worlds.former", fails)
    with camera.processor:
        camera.visit("source", 4)
        camera.visit("fog")
        camera.visit("night")
        assert camera.processor.phase() == "following"
    assert "no room" in camera.told(GuardFailed)[0].error
    assert not camera.told(DomainLearned)
