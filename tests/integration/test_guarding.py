"""The guard of a running processor."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.errors import ConfigurationError, StreamError
from streamadapt.events import (
    AnswersCompared,
    Event,
    FramesRejected,
    GuardActed,
    GuardFailed,
    LabelsRevealed,
    RolledBack,
    SettlingPassed,
    StepCompleted,
)

CLASSES = 8
EMA = sa.estimators.EMA(momentum=0.5)

STRICT = sa.Guard(margin=0.02, cooldown_seconds=5.0)


class Classifier(nn.Module):
    """Answers with the channel that stands out beside its own statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CLASSES)
        nn.init.constant_(self.norm.running_mean, 3.0 / CLASSES)
        nn.init.constant_(self.norm.running_var, 1.0 + 9.0 * (1 / CLASSES - 1 / CLASSES**2))

    def forward(self, x: Tensor) -> Tensor:
        return 6.0 * self.norm(x).mean(dim=(2, 3))


def scenes(labels: Tensor, seed: int, *, offset: Tensor | float = 0.0) -> Tensor:
    """Pictures in which the channel of the label is bright."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), CLASSES, 8, 8, generator=generator)
    noise += 0.6 * torch.randn(len(labels), CLASSES, 1, 1, generator=generator)
    bright = 3.0 * nn.functional.one_hot(labels, CLASSES)[..., None, None]
    return noise + bright + offset


def shuffled(seed: int, count: int = 16) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def answered(
    processor: sa.StreamProcessor, batches: list[tuple[Tensor, Tensor]], **kwargs: Any
) -> list[float]:
    """Share of right answers in each batch."""
    shares = []
    for step, (labels, frames) in enumerate(batches):
        output = processor(frames, pts_seconds=step * len(frames) / 25, **kwargs)
        shares.append(float((output.argmax(dim=1) == labels).double().mean()))
    return shares


def of_one_class(batches: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Long stretches of one class after the other: statistics of a batch say nothing of others."""
    out = []
    for step in range(batches):
        labels = torch.full((16,), step // 5 % CLASSES)
        out.append((labels, scenes(labels, seed + step)))
    return out


def watched(model: nn.Module, **kwargs: Any) -> tuple[sa.StreamProcessor, list[Event]]:
    events: list[Event] = []
    arguments: dict[str, Any] = {"estimator": EMA, "guard": sa.Guard(), "alarms": None, **kwargs}
    return sa.StreamProcessor(model, on_event=events.append, **arguments), events


def state_of(processor: sa.StreamProcessor, stream: str | None = None) -> str:
    known = processor.guarded(stream)
    assert known is not None
    return known.state


def acts(events: list[Event]) -> list[str]:
    return [one.action for one in events if isinstance(one, GuardActed)]


def test_statistics_that_hurt_are_out_of_service_soon() -> None:
    processor, events = watched(Classifier().eval())
    with processor:
        guarded = answered(processor, of_one_class(120, seed=0))
        assert not processor.status.healthy or state_of(processor) == "watching"
    with sa.StreamProcessor(Classifier().eval(), estimator=EMA, alarms=None) as processor:
        alone = answered(processor, of_one_class(120, seed=0))
    assert sum(alone[20:]) / 100 < 0.6
    assert sum(guarded[20:]) / 100 > 0.85  # after four such stretches
    assert acts(events)[:2] == ["hold", "shrink"]


def test_a_loss_that_comes_back_leads_to_a_former_state_and_to_the_source() -> None:
    processor, events = watched(Classifier().eval(), guard=STRICT)
    with processor:
        answered(processor, of_one_class(120, seed=0))
    assert {"rollback", "pin"} & set(acts(events))
    assert {one.reason for one in events if isinstance(one, RolledBack)} == {"harm"}


def test_a_world_that_moved_is_no_harm() -> None:
    offset = torch.linspace(-4, 4, CLASSES)[:, None, None]
    batches = [
        (labels, scenes(labels, step, offset=0.0 if step < 10 else offset))
        for step in range(80)
        for labels in [shuffled(step)]
    ]
    processor, events = watched(Classifier().eval())
    with processor:
        shares = answered(processor, batches)
    assert sum(shares[15:]) / 65 > 0.9
    assert not acts(events)
    compared = [one for one in events if isinstance(one, AnswersCompared)]
    assert compared[-1].gain > 0.2


def test_an_hour_of_one_class_is_no_harm() -> None:
    slow = sa.estimators.EMA(momentum=0.001)
    labels = torch.zeros(16, dtype=torch.long)
    batches = [(shuffled(step), scenes(shuffled(step), step)) for step in range(30)]
    batches += [(labels, scenes(labels, 100 + step)) for step in range(60)]
    processor, events = watched(Classifier().eval(), estimator=slow)
    with processor:
        answered(processor, batches)
    assert not acts(events)
    assert len([one for one in events if isinstance(one, AnswersCompared)]) > 1


@pytest.mark.parametrize("estimator", [EMA, sa.estimators.Restarting()])
def test_a_guard_that_finds_nothing_changes_no_bit(estimator: sa.estimators.Estimator) -> None:
    batches = [(shuffled(step), scenes(shuffled(step), step)) for step in range(40)]
    found = []
    for guard in (sa.Guard(share=0.1), None):
        model = Classifier().eval()
        processor, events = watched(model, guard=guard, estimator=estimator)
        random_before = torch.random.get_rng_state()
        with processor:
            outputs = [
                processor(frames, pts_seconds=step * 0.64)
                for step, (_, frames) in enumerate(batches)
            ]
            state = processor.statistics()
        assert torch.equal(torch.random.get_rng_state(), random_before)
        assert not acts(events)
        found.append((outputs, state))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one, other)
    for name, moments in found[0][1].items():
        assert torch.equal(moments.mean, found[1][1][name].mean)


def test_only_the_stream_that_is_hurt_is_held() -> None:
    processor, events = watched(Classifier().eval(), max_streams=2)
    with processor:
        for step, (_, hurt) in enumerate(of_one_class(40, seed=0)):
            fine = shuffled(step)
            batch = torch.stack([hurt, scenes(fine, 500 + step)], dim=1).flatten(0, 1)
            processor(batch, streams=["hurt", "fine"] * 16, pts_seconds=step * 0.64)
        states = {name: state_of(processor, name) for name in ("hurt", "fine")}
    assert states["fine"] == "watching"
    assert {one.stream for one in events if isinstance(one, GuardActed)} == {"hurt"}


def test_a_pin_ends_and_the_stream_may_adapt_again() -> None:
    processor, events = watched(Classifier().eval(), guard=STRICT)
    with processor:
        answered(processor, of_one_class(120, seed=0))
        batches = [(shuffled(step), scenes(shuffled(step), step)) for step in range(60)]
        for step, (_, frames) in enumerate(batches):
            processor(frames, pts_seconds=(120 + step) * 0.64)
        assert state_of(processor) == "watching"
    assert "unpin" in acts(events)


def spoilt(frames: Tensor) -> dict[str, Tensor]:
    noise = torch.randn(1, CLASSES, 8, 8, generator=torch.Generator().manual_seed(9))
    return {
        "black": torch.full_like(frames, float(frames.min())),
        "saturated": torch.full_like(frames, 50.0),
        "frozen": noise.expand_as(frames).contiguous(),
        "nonfinite": torch.full_like(frames, torch.nan),
    }


@pytest.mark.parametrize("reason", ["black", "saturated", "frozen", "nonfinite"])
def test_what_is_no_picture_is_answered_and_not_learned_from(reason: str) -> None:
    processor, events = watched(Classifier().eval())
    with processor:
        for step in range(20):
            processor(scenes(shuffled(step), step), pts_seconds=step * 0.64)
        frames = spoilt(scenes(shuffled(20), 20))[reason]
        processor(frames, pts_seconds=13.0)
        before = processor.statistics()["norm"].mean
        output = processor(frames, pts_seconds=14.0)
        after = processor.statistics()["norm"].mean
    assert output.shape == (16, CLASSES)
    assert torch.equal(before, after)
    rejected = [one for one in events if isinstance(one, FramesRejected)]
    assert rejected[-1].reason == reason and rejected[-1].frames == 16
    assert sum(one.frames for one in rejected if one.step == 21) == 16


def test_shadow_compares_and_changes_no_answer() -> None:
    source = Classifier().eval()
    processor, events = watched(Classifier().eval(), mode="shadow", shadow_every=1)
    with processor:
        for step, (_, frames) in enumerate(of_one_class(40, seed=0)):
            assert torch.equal(processor(frames, pts_seconds=step * 0.64), source(frames))
    assert [one for one in events if isinstance(one, AnswersCompared) and one.gain < -0.05]
    assert acts(events)[0] == "hold"


def fails(_: object) -> Tensor:
    raise ValueError("no health today")


def wrong(output: Tensor) -> Tensor:
    return output


@pytest.mark.parametrize("health", [fails, wrong])
def test_a_health_function_that_fails_is_told_and_nothing_else(
    health: Callable[[object], Tensor],
) -> None:
    processor, events = watched(Classifier().eval(), guard=sa.Guard(health=health))
    with processor:
        for step in range(20):
            labels = shuffled(step)
            assert processor(scenes(labels, step)).shape == (16, CLASSES)
        assert not processor.status.healthy
    assert [one for one in events if isinstance(one, GuardFailed)]
    assert {one.outcome for one in events if isinstance(one, StepCompleted)} == {"updated"}


def test_a_models_own_health_is_what_counts() -> None:
    class Regressor(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, 0]

    def near_thirteen(value: Tensor) -> Tensor:
        return 1.0 - (value - 13.3).abs().clamp(max=1.0)

    processor, events = watched(Regressor().eval(), guard=sa.Guard(health=near_thirteen))
    with processor:
        for step in range(60):
            frames = scenes(shuffled(step), step)
            frames[:, 0] = 3.5  # the source says 13.3, and a world of such frames 0
            processor(frames, pts_seconds=step * 0.64)
    compared = [one for one in events if isinstance(one, AnswersCompared)]
    assert compared and compared[0].agreement is None
    assert acts(events)[0] == "hold"


def test_outputs_that_are_no_scores_are_left_alone() -> None:
    class Embedding(Classifier):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"embedding": super().forward(x)}

    processor, events = watched(Embedding().eval())
    with processor:
        for step in range(30):
            processor(scenes(shuffled(step), step))
        assert processor.status.healthy
    assert not [one for one in events if isinstance(one, AnswersCompared | GuardFailed)]


def test_padding_is_neither_judged_nor_compared() -> None:
    processor, events = watched(Classifier().eval(), guard=sa.Guard(share=1.0))
    with processor:
        for step in range(20):
            frames = scenes(shuffled(step), step)
            frames[12:] = 0.0
            processor(frames, valid=12, pts_seconds=step * 0.48)
    assert not [one for one in events if isinstance(one, FramesRejected)]
    assert {one.frames for one in events if isinstance(one, AnswersCompared)} == {12}


def test_a_second_argument_goes_along() -> None:
    class Two(Classifier):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
            assert len(bias) == len(x)
            return super().forward(x) + bias

    random.seed(0)
    processor, events = watched(Two().eval(), guard=sa.Guard(share=1.0))
    with processor:
        for step in range(10):
            processor(scenes(shuffled(step), step), torch.zeros(16, CLASSES))
    assert [one for one in events if isinstance(one, AnswersCompared)]
    assert not [one for one in events if isinstance(one, GuardFailed)]


def test_labels_outrank_what_is_estimated() -> None:
    """The source is right by labels, though its answers look worse: it is what counts."""
    offset = torch.linspace(-4, 4, CLASSES)[:, None, None]
    processor, events = watched(Classifier().eval(), guard=sa.Guard(share=0.0))
    source = Classifier().eval()
    with processor:
        for step in range(40):
            frames = scenes(shuffled(step), step, offset=offset)
            ids = [(step, k) for k in range(16)]
            processor(frames, ids=ids, pts_seconds=step * 0.64)
            if step < 20:
                continue
            labels = source(frames).argmax(dim=1).tolist()
            assert processor.reveal(ids, labels) == 16
        assert processor.reveal([(39, 0), "unknown"], [1, 2]) == 0
    estimates = [one.gain for one in events if isinstance(one, AnswersCompared)]
    assert estimates[15] > 0.1
    assert acts(events)[0] == "hold"
    revealed = [one for one in events if isinstance(one, LabelsRevealed)]
    assert revealed[0].frames == revealed[0].source_right == 16


def test_labels_of_former_statistics_do_not_count() -> None:
    processor, events = watched(Classifier().eval())
    with processor:
        processor(scenes(shuffled(0), 0), ids=list(range(16)))
        processor.rollback(to="source")
        assert processor.reveal(list(range(16)), [-1] * 16) == 16
    assert not acts(events)


@pytest.mark.parametrize("ids", ["abc", [1, 2], [[1]] * 16])
def test_ids_that_do_not_fit_are_refused_before_the_forward(ids: Any) -> None:
    processor, _ = watched(Classifier().eval())
    with processor, pytest.raises(StreamError, match=r"id"):
        processor(scenes(shuffled(0), 0), ids=ids)


def test_labels_need_a_guard_and_an_id_each() -> None:
    processor, _ = watched(Classifier().eval(), guard=None)
    with processor:
        with pytest.raises(ConfigurationError, match="guard"):
            processor.reveal(["a"], [1])
        with pytest.raises(ConfigurationError, match="2 ids and 1 labels"):
            processor.reveal(["a", "b"], [1])


def test_what_a_guard_did_is_replayed_from_the_journal(tmp_path: Path) -> None:
    processor, events = watched(Classifier().eval(), journal=tmp_path, guard=STRICT)
    with processor:
        answered(processor, of_one_class(120, seed=0))
    assert {"hold", "pin"} <= set(acts(events))
    replay = sa.journal.replay_journal(tmp_path)
    assert replay.same and replay.deviation < 1e-6


def test_a_description_tells_of_the_guard() -> None:
    processor, _ = watched(Classifier().eval(), estimator=sa.estimators.Restarting(), domains=3)
    with processor:
        text = str(processor.describe())
        assert "Guard(share=0.005" in text and "remembers 3 domains" in text
        assert processor.describe().alarms is None


def test_embeddings_are_not_judged() -> None:
    processor, events = watched(Classifier().eval(), guard=sa.Guard(share=1.0), class_scores=False)
    with processor:
        for step in range(30):
            processor(scenes(shuffled(step), step))
    assert not [one for one in events if isinstance(one, AnswersCompared)]


def test_a_stream_that_is_pinned_does_not_settle() -> None:
    settings = {"estimator": sa.estimators.Restarting(), "guard": sa.Guard(margin=0.1)}
    processor, events = watched(Classifier().eval(), **settings)
    offset = torch.linspace(-4, 4, CLASSES)[:, None, None]
    with processor:
        for step in range(60):
            frames = scenes(shuffled(step), step, offset=offset)
            ids = list(range(16))
            processor(frames, ids=ids, pts_seconds=step * 0.64)
            processor.reveal(ids, labels_of_the_source(frames))
            if state_of(processor) == "pinned":
                break
        assert state_of(processor) == "pinned"
        settled = len([one for one in events if isinstance(one, SettlingPassed)])
        for step in range(60, 70):
            processor(scenes(shuffled(step), step, offset=offset), pts_seconds=step * 0.64)
        assert len([one for one in events if isinstance(one, SettlingPassed)]) == settled
        assert processor.phase() == "settling"


def labels_of_the_source(frames: Tensor) -> list[int]:
    labels: list[int] = Classifier().eval()(frames).argmax(dim=1).tolist()
    return labels


def test_labels_of_a_rows_former_owner_do_not_count() -> None:
    processor, _ = watched(Classifier().eval(), when_full="evict")
    with processor:
        processor(scenes(shuffled(0), 0), streams="before", ids=list(range(16)))
        processor(scenes(shuffled(1), 1), streams="after")
        right = labels_of_the_source(scenes(shuffled(0), 0))
        assert processor.reveal(list(range(16)), right) == 16
        known = processor.guarded("after")
    assert known is not None and known.gain != known.gain
