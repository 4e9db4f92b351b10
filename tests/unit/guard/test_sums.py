"""Moving sums over answers, against every frame remembered in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from streamadapt.guard.answers import Answers
from streamadapt.guard.sums import AnswerSums, Summary
from tests.unit.guard.numpy_answers import Camera

FIGURES = ("frames", "information", "entropy", "flips", "classes")


def scores(*shape: int, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(*shape, generator=made)


def add(
    sums: AnswerSums,
    step: int,
    rows: list[int],
    entries: list[int],
    output: Tensor,
    *,
    apart: int | None = 1,
) -> Summary:
    answers = Answers.of(output, len(entries))
    assert answers is not None
    return sums.add([step] * len(rows), rows, entries, answers, apart=apart)


def figures(summary: Summary, place: int = 0) -> list[float]:
    return [getattr(summary, name)[place].item() for name in FIGURES]


def of(camera: Camera) -> list[float]:
    if not camera.answers:
        return [0.0, 0.0, 0.0, 0.0, 1.0]
    told, doubt = camera.information, camera.entropy
    return [camera.frames, told, doubt, camera.flips, math.exp(told + doubt)]


@pytest.mark.parametrize("apart", [0, 1, 3, None])
@pytest.mark.parametrize("window", [6.0, 64.0])
@pytest.mark.parametrize("positions", [(), (2, 3)])
def test_they_are_means_over_a_window_whatever_frames_come_when(
    apart: int | None, window: float, positions: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    sums = AnswerSums(5, window_frames=window)
    longest = math.inf if apart is None else apart
    cameras = [Camera(window=window, apart=longest) for _ in range(5)]
    step = 0
    for turn in range(18):
        step += int(rng.integers(1, 4))
        rows = rng.permutation(5)[: rng.integers(1, 5)].tolist()
        entries = rng.integers(0, len(rows), rng.integers(1, 12)).tolist()
        output = scores(len(entries), 3, *positions, seed=turn)
        summary = add(sums, step, rows, entries, output, apart=apart)
        flat = output.double().numpy().reshape(len(entries), 3, -1)
        for place, row in enumerate(rows):
            own = [k for k, entry in enumerate(entries) if entry == place]
            if own:
                cameras[row].show(step, flat[own])
            assert figures(summary, place) == pytest.approx(of(cameras[row]), abs=1e-10)


def test_it_does_not_matter_how_frames_are_cut_into_steps() -> None:
    output = scores(60, 4, seed=1)
    found = []
    for size in (1, 7, 60):
        sums = AnswerSums(1, window_frames=math.inf)
        for step, part in enumerate(output.split(size)):
            summary = add(sums, step, [0], [0] * len(part), part)
        found.append(figures(summary))
    assert found[0] == pytest.approx(found[2], abs=1e-12)
    assert found[1] == pytest.approx(found[2], abs=1e-12)
    assert found[0][0] == 60.0


@pytest.mark.parametrize("size", [7, 16])
def test_in_the_long_run_they_rest_on_the_window(size: int) -> None:
    sums = AnswerSums(1, window_frames=64.0)
    for step in range(800 // size):
        summary = add(sums, step, [0], [0] * size, scores(size, 3, seed=step))
    assert summary.frames.item() == pytest.approx(64.0, rel=1e-3)
    assert summary.entropy.dtype == torch.float64


def test_no_row_feels_another() -> None:
    film, other = scores(40, 4, seed=2), scores(40, 4, seed=3)
    other[5:9] = math.nan
    together, alone = AnswerSums(9, window_frames=16.0), AnswerSums(1, window_frames=16.0)
    for step in range(10):
        part, foreign = film[4 * step : 4 * step + 4], other[4 * step : 4 * step + 4]
        mixed = torch.stack([foreign, part], dim=1).flatten(0, 1)  # one of each in turn
        found = add(together, step, [2, 7], [0, 1] * 4, mixed)
        assert figures(found, 1) == figures(add(alone, step, [0], [0] * 4, part))
        assert all(math.isfinite(value) for value in figures(found, 0))


def test_frames_are_neighbours_only_if_no_other_came_long_between() -> None:
    even, odd = 9.0 * torch.eye(2)
    for apart, gap, flips in ((1, 1, 1.0), (1, 2, 0.0), (3, 3, 1.0), (None, 99, 1.0), (0, 1, 0.0)):
        sums = AnswerSums(1, window_frames=64.0)
        add(sums, 10, [0], [0], even[None], apart=apart)
        assert add(sums, 10 + gap, [0], [0], odd[None], apart=apart).flips.item() == flips


def test_a_share_of_few_and_old_pairs_is_still_a_share() -> None:
    """Neighbours that all differ: a share of one, however little they count by now."""
    sums = AnswerSums(1, window_frames=8.0)
    add(sums, 0, [0], [0, 0], 9.0 * torch.eye(2))
    for step in range(10, 100, 10):
        assert add(sums, step, [0], [0], scores(1, 2)).flips.item() == pytest.approx(1.0)


def test_a_new_owner_starts_without_a_history() -> None:
    film = scores(30, 4, seed=4)
    sums, anew, other = (AnswerSums(3, window_frames=16.0) for _ in range(3))
    for step in range(3):
        add(sums, step, [0, 2], [0, 1] * 5, scores(10, 4, seed=step))
        add(other, step, [0, 2], [0, 1] * 5, scores(10, 4, seed=step))
    with torch.inference_mode():
        sums.forget(row for row in (2,))
    for step, part in enumerate(film.split(5), start=3):
        found = add(sums, step, [2, 0], [0] * len(part) + [1], torch.cat([part, film[:1]]))
        assert figures(found, 0) == figures(add(anew, step, [2], [0] * len(part), part))
        assert figures(found, 1) == figures(add(other, step, [0], [0], film[:1]))
    AnswerSums(3, window_frames=16.0).forget([1])  # before there is anything


def test_with_other_classes_everything_begins_anew_and_with_another_size_only_the_neighbours() -> (
    None
):
    sums = AnswerSums(2, window_frames=64.0)
    for step in range(3):
        add(sums, step, [1], [0] * 4, scores(4, 3, 2, seed=step))
    larger = add(sums, 3, [1], [0], scores(1, 3, 5))
    assert larger.frames.item() > 10.0
    other = add(sums, 4, [1], [0] * 2, 9.0 * torch.eye(4)[[0, 1]])
    assert (other.frames.item(), other.flips.item()) == (2.0, 1.0)


def test_state_does_not_grow() -> None:
    sums = AnswerSums(4, window_frames=64.0)
    add(sums, 0, [0], [0], scores(1, 10))
    places = {id(one) for one in vars(sums).values() if isinstance(one, Tensor)}
    for step in range(1, 40):
        add(sums, step, [step % 4], [0] * 3, scores(3, 10, seed=step))
    tensors = [one for one in vars(sums).values() if isinstance(one, Tensor)]
    assert {id(one) for one in tensors} == places
    assert sum(one.nbytes for one in tensors) <= 4 * 8 * (4 + 10 + 1)
