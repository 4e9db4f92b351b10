"""What a policy is told while it goes over a recording, and what is noted of its answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.errors import ConfigurationError, DataError, ScenarioError
from streamadapt.replay.policies import ProcessorPolicy
from streamadapt.replay.spans import DomainSpan
from streamadapt.replay.unit import Conditions, UnitResult, run_unit
from tests.unit.replay.tiny import Told, brightness, recording

PLAIN = Conditions((0.0,) * 3, (1.0,) * 3, batch_size=4, frames_per_second=25.0)


def go(
    policy: Any, *, model: nn.Module | None = None, cost: float = 1.0, **changes: Any
) -> UnitResult:
    conditions = Conditions(**{**vars(PLAIN), **changes.pop("conditions", {})})
    return run_unit(
        policy,
        model or brightness(),
        recording(**changes),
        conditions=conditions,
        cost=cost,
        progress=lambda done, words: None,
    )


def test_batches_come_in_order_and_nothing_else_is_told() -> None:
    told = Told()
    go(told)
    batches = [("adapt", list(range(at, at + 3)), None) for at in (0, 3, 6, 9)]
    assert told.said == [("start", [], ()), *batches, ("finish",)]


def test_oracles_see_each_domain_before_its_first_batch() -> None:
    told = Told(oracle=True)
    go(told)
    assert told.said[1] == ("domain", [[0, 1, 2, 3], [4, 5]])
    assert told.said[4] == ("domain", [[6, 7, 8, 9], [10, 11]])


def test_oracles_see_frames_of_a_slow_transition_where_they_belong() -> None:
    told = Told(oracle=True)
    go(told, domains=np.array([0] * 7 + [1, 0] + [1] * 3))
    assert [said[1] for said in told.said if said[0] == "domain"] == [
        [[0, 1, 2, 3], [4, 5, 6, 8]],
        [[7, 9, 10, 11]],
    ]


def test_oracles_see_everything_where_domains_are_mixed() -> None:
    told = Told(oracle=True)
    go(told, domains=np.arange(12) % 2, starts=(0,))
    assert [said[1] for said in told.said if said[0] == "domain"] == [
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    ]


def test_episodic_goes_back_to_the_source_where_a_domain_starts() -> None:
    told = Told(oracle=True)
    go(told, conditions={"episodic": True})
    kinds = [said[0] for said in told.said]
    assert kinds == [
        "start",
        "domain",
        "adapt",
        "adapt",
        "reset",
        "domain",
        *["adapt"] * 2,
        "finish",
    ]


def test_cameras_and_calibration_are_handed_over() -> None:
    told = Told()
    go(
        told,
        cameras=("north", "south"),
        camera_numbers=np.arange(12) % 2,
        calibration=np.zeros((100, 4, 4, 3), dtype=np.uint8),
    )
    assert told.said[0] == ("start", [64, 36], ("north", "south"))
    assert told.said[1][2] == ("north", "south", "north")
    assert told.said[2][2] == ("south", "north", "south")


def test_a_policy_that_is_busy_answers_with_what_it_has() -> None:
    told = Told()
    unit = go(told, cost=2.5, conditions={"relative_rate": 1.0})
    assert [said[0] for said in told.said[1:-1]] == ["adapt", "predict", "predict", "adapt"]
    assert list(unit.series.adapted) == [True, False, False, True]
    assert all(go(Told(), cost=2.5).series.adapted)


def test_answers_are_judged_by_the_labels_that_are_known() -> None:
    labels = np.array([0, 1, -1, 0, 0, 1, -1, -1, -1, 1, 1, 1])
    series = go(Told(), labels=labels).series
    assert series.correct.tolist() == (labels == 0).tolist()
    sure = float(torch.softmax(torch.tensor([1.0, 0.0]), dim=0)[0])
    assert list(series.confidence) == pytest.approx([sure] * 4, rel=1e-5)
    entropy = -sure * np.log(sure) - (1 - sure) * np.log(1 - sure)
    assert list(series.diversity) == pytest.approx([np.exp(entropy)] * 4, rel=1e-5)
    place = int(np.ceil(sure * 15)) - 1
    assert series.reliability.frames[place] == sum(series.reliability.frames) == 8
    assert series.reliability.accuracy[place] == pytest.approx(3 / 8)


def test_diversity_looks_back_128_frames() -> None:
    class Turning(Told):
        """One sure class for a long time, then the other."""

        def __call__(self, batch: Tensor, **_: Any) -> Tensor:
            self.said.append(len(batch))
            return 1e4 * torch.eye(2)[[int(len(self.said) > 7)] * len(batch)]

    series = go(
        Turning(),
        frames=np.zeros((640, 4, 4, 3), np.uint8),
        labels=np.zeros(640, np.int64),
        domains=np.zeros(640, np.int64),
        batch_frames=np.full(10, 64),
        starts=(0,),
    ).series
    mixed = [1.0] * 6 + [2.0] + [1.0] * 3
    assert list(series.diversity) == pytest.approx(mixed)


def test_distances_are_means_over_layers_and_not_taken_too_often() -> None:
    class Far(Told):
        def distance(self) -> dict[str, float]:
            self.said.append("distance")
            return {"a": 1.0, "b": 3.0}

    far, batches = Far(), 1000
    series = go(
        far,
        frames=np.zeros((batches, 4, 4, 3), np.uint8),
        labels=np.zeros(batches, np.int64),
        domains=np.zeros(batches, np.int64),
        batch_frames=np.ones(batches, np.int64),
        starts=(0,),
    ).series
    taken = [number for number, value in enumerate(series.distance) if value is not None]
    assert far.said.count("distance") == len(taken) <= 400 and set(np.diff(taken)) == {3}
    assert {series.distance[number] for number in taken} == {2.0}
    assert len(series.layer_batches) <= 100 and set(series.layer_batches) <= set(taken)
    assert series.layer_distance == {
        "a": [1.0] * len(series.layer_batches),
        "b": [3.0] * len(series.layer_batches),
    }
    assert all(value is None for value in go(Told()).series.distance)


def test_events_are_kept_with_their_batch() -> None:
    class Breaking(ProcessorPolicy):
        """Feeds itself a broken batch, once."""

        answered = 0

        def __call__(self, batch: Tensor, **streams: Any) -> Tensor:
            self.answered += 1
            if self.answered == 3:
                self.processor.snapshot("before")
                self.processor(torch.full_like(batch, float("nan")))
                self.processor.rollback(to="before", reason="test")
            return super().__call__(batch, **streams)

    unit = go(Breaking("breaking", sa.estimators.EMA(momentum=0.1)))
    kinds = {event.kind: event for event in unit.events}
    assert {"SnapshotTaken", "FramesRejected", "RolledBack"} <= set(kinds)
    assert kinds["RolledBack"].batch == 2
    assert kinds["RolledBack"].fields["reason"] == "test"


def test_what_a_policy_draws_depends_on_the_seed_alone() -> None:
    class Guessing(Told):
        def __call__(self, batch: Tensor, **_: Any) -> Tensor:
            return torch.randn(len(batch), 2)

    def guesses(seed: int) -> list[float]:
        return list(go(Guessing(), conditions={"seed": seed}).series.confidence)

    before = torch.get_rng_state()
    assert guesses(1) == guesses(1) != guesses(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_finished_with_even_when_something_breaks() -> None:
    class Broken(Told):
        def __call__(self, batch: Tensor, **_: Any) -> Tensor:
            raise KeyError("broken")

    broken = Broken()
    with pytest.raises(KeyError, match="broken"):
        go(broken)
    assert broken.said[-1] == ("finish",)


def test_says_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="have the label 1, the model knows the classes 0 to 0"):
        go(Told(classes=1))
    with pytest.raises(
        ConfigurationError, match=r"must return class scores \[3, classes\], got \[3, 3, 4, 4\]"
    ):
        go(ProcessorPolicy("ema"), model=nn.BatchNorm2d(3).eval())

    class Picky(Told):
        def start(self, model: nn.Module, **_: Any) -> None:
            raise ConfigurationError("wants more layers")

    with pytest.raises(ScenarioError, match="policy `picky`: wants more layers"):
        go(Picky("picky"))


def test_a_unit_survives_json() -> None:
    unit = go(ProcessorPolicy("ema"), labels=np.array([-1] * 6 + [0, 1] * 3))
    again = UnitResult.from_dict(unit.to_dict(), frames=12)
    assert again.to_dict() == unit.to_dict()


def test_spans_say_where_we_are() -> None:
    seen = []
    spans = tuple(DomainSpan(name, 0, "none", (), 0, 6, 1.0) for name in ("first", "second"))
    run_unit(
        Told(),
        brightness(),
        recording(spans=spans),
        conditions=PLAIN,
        cost=1.0,
        progress=lambda done, words: seen.append((done, words)),
    )
    assert seen == [(1, "first"), (2, "first"), (3, "second"), (4, "second")]
