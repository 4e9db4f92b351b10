"""Adapted answers beside the source's, against every frame remembered in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamadapt.errors import DataError
from streamadapt.guard.evidence import Evidence
from tests.unit.guard.numpy_answers import Camera, estimated_gain

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def scores(*shape: int, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return sharpness * torch.randn(*shape, generator=made)


def answering(classes: list[int], count: int = 10) -> Tensor:
    """Certain answers."""
    return 9.0 * torch.eye(count)[classes]


def add(evidence: Evidence, step: int, adapted: Any, source: Any, row: int = 0) -> list[float]:
    """One row's gain, frames and agreement."""
    found = evidence.add([step], [row], [0] * len(source), adapted, source)
    assert found is not None and found.dtype == torch.float64
    return found[0, :3].tolist()


@pytest.mark.parametrize("positions", [(), (3, 2)])
def test_the_gain_is_what_its_formula_says_of_all_frames_that_were_shown(
    positions: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(0)
    evidence = Evidence(4, health=None)
    cameras = [[Camera(window=256.0, apart=1) for _ in "as"] for _ in range(4)]
    step = 0
    for turn in range(20):
        step += int(rng.integers(1, 3))
        rows = rng.permutation(4)[: rng.integers(1, 4)].tolist()
        entries = rng.integers(0, len(rows), rng.integers(1, 60)).tolist()
        source = scores(len(entries), 5, *positions, seed=turn)
        adapted = source + scores(*source.shape, seed=100 + turn, sharpness=1.0)
        found = evidence.add([step] * len(rows), rows, entries, adapted, source)
        assert found is not None
        for place, (row, values) in enumerate(zip(rows, found[:, :3].tolist(), strict=True)):
            own = [k for k, entry in enumerate(entries) if entry == place]
            flat = [one.double().numpy().reshape(len(entries), 5, -1) for one in (adapted, source)]
            if not own:
                assert math.isnan(values[2])
                continue
            for camera, one in zip(cameras[row], flat, strict=True):
                camera.show(step, one[own])
            agreement = (flat[0][own].argmax(1) == flat[1][own].argmax(1)).mean()
            wanted = [estimated_gain(*cameras[row]), cameras[row][0].frames, agreement]
            assert values == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_answers_the_gain_is_exactly_zero(dtype: torch.dtype) -> None:
    for seed in range(8):
        evidence = Evidence(1, health=None)
        one = scores(1, 7, seed=seed).to(dtype).expand(9, 7)  # always the same answer
        many = scores(9, 7, seed=seed).to(dtype)
        for step, output in enumerate([one, one, one, many, many.roll(2, 0)]):
            assert add(evidence, step, output, output.clone())[::2] == [0.0, 1.0]


def test_a_collapse_to_one_class_is_a_clear_loss_and_the_way_back_a_gain() -> None:
    film = answering([k // 6 % 10 for k in range(120)])  # something else every six frames
    stuck = answering([3] * 120)
    loss, gain = Evidence(1, health=None), Evidence(1, health=None)
    for step, (some, other) in enumerate(zip(stuck.split(4), film.split(4), strict=True)):
        lost, won = add(loss, step, some, other), add(gain, step, other, some)
    assert lost[0] < -0.4
    assert won[0] > 0.4
    assert lost[1] == won[1] == pytest.approx(64.0 * 4.0 * (1.0 - (1.0 - 4 / 256) ** 30))


def test_answers_without_certainty_are_a_loss() -> None:
    evidence = Evidence(1, health=None)
    film = answering([k // 6 % 10 for k in range(120)])
    assert add(evidence, 0, 0.05 * film, film)[0] < -0.4


def test_answers_that_waver_are_a_loss() -> None:
    calm = [k // 12 % 10 for k in range(120)]
    restless = [(k // 12 + k % 2) % 10 for k in range(120)]  # tells as much in all
    assert add(Evidence(1, health=None), 0, answering(restless), answering(calm))[0] < -0.3


def test_in_an_image_a_part_of_the_positions_is_a_part_of_the_loss() -> None:
    film = answering([k // 6 % 10 for k in range(60)])
    image = film[:, :, None, None].expand(60, 10, 6, 8)
    half = image.clone()
    half[..., 4:] = answering([3])[..., None, None]
    found = add(Evidence(1, health=None), 0, half, image)
    whole = add(
        Evidence(1, health=None), 0, answering([3] * 60)[:, :, None, None] + 0 * image, image
    )
    assert found[2] == pytest.approx(0.5 + 0.5 * (60 - 54) / 60)
    assert whole[0] < found[0] < -0.1


def test_no_row_feels_another() -> None:
    together, alone = Evidence(6, health=None), Evidence(1, health=None)
    for step in range(12):
        adapted, source = scores(10, 5, seed=step), scores(10, 5, seed=99 + step)
        adapted[::2] = math.nan if step % 3 else 1e30
        found = together.add([step] * 2, [1, 4], [0, 1] * 5, adapted, source)
        assert found is not None and found[:, :2].isfinite().all()
        assert found[1, :3].tolist() == add(alone, step, adapted[1::2], source[1::2])


def test_frames_that_nobody_saw_between_are_not_wavered_over() -> None:
    calm = answering([k // 12 % 10 for k in range(60)])
    restless = answering([(k // 12 + k % 2) % 10 for k in range(60)])
    gains = []
    for gap in (1, 2):
        evidence = Evidence(1, health=None)
        for step, (some, other) in enumerate(zip(restless.split(1), calm.split(1), strict=True)):
            found = add(evidence, gap * step, some, other)
        gains.append(found[0])
    assert gains[1] - gains[0] == pytest.approx(0.49 * (1 - 2 * 4 / 59), abs=0.03)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_leave_no_lasting_trace(bad: float) -> None:
    evidence = Evidence(1, health=None)
    film = answering([k // 6 % 10 for k in range(60)])
    broken = film.clone()
    broken[5:20, 1:] = bad
    assert math.isfinite(add(evidence, 0, broken, film)[0])
    assert math.isfinite(add(evidence, 1, film, broken)[0])
    for step in range(2, 40):
        found = add(evidence, step, film, film)
    assert found[0] == pytest.approx(0.0, abs=1e-3)


def test_an_adapted_model_that_answers_nan_is_a_loss() -> None:
    film = answering([k // 6 % 10 for k in range(60)])
    assert add(Evidence(1, health=None), 0, film * math.nan, film)[0] < -0.4


@pytest.mark.parametrize(
    ("adapted", "source"),
    [
        (None, None),
        ({"boxes": torch.zeros(2, 3)}, {"boxes": torch.zeros(2, 3)}),
        (torch.zeros(2), torch.zeros(2)),
        (torch.zeros(3, 4), torch.zeros(3, 4)),
        (torch.zeros(2, 4), torch.zeros(2, 5)),
        (torch.zeros(2, 4), torch.zeros(2, 4, 3, 3)),
        (torch.zeros(2, 4, 2), torch.zeros(2, 4, 3)),
        (torch.zeros(2, 4), None),
        (torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4)),
    ],
)
def test_outputs_that_are_no_two_answers_to_the_same_frames_are_not_judged(
    adapted: Any, source: Any
) -> None:
    assert Evidence(1, health=None).add([0], [0], [0, 0], adapted, source) is None


def test_modes_of_the_caller_do_not_matter() -> None:
    inside, outside = Evidence(2, health=None), Evidence(2, health=None)
    for step in range(6):
        adapted, source = scores(4, 3, seed=step), scores(4, 3, seed=9 + step)
        with torch.inference_mode(step % 2 == 0):
            pair = (adapted + 0.0, source + 0.0)
        with torch.inference_mode(step % 3 == 0):
            found = inside.add([step], [1], [0] * 4, *pair)
            if step == 3:
                inside.forget([0])
        assert found is not None and not found.is_inference()
        assert found[0, :3].tolist() == add(outside, step, adapted.requires_grad_(), source)


def test_other_statistics_are_judged_by_what_comes_after() -> None:
    evidence, anew = Evidence(3, health=None), Evidence(3, health=None)
    for step in range(4):
        add(evidence, step, scores(8, 5, seed=step), scores(8, 5, seed=9 + step), row=2)
    evidence.forget(row for row in (2, 0))
    evidence.forget([])
    adapted, source = scores(8, 5, seed=5), scores(8, 5, seed=6)
    again = add(evidence, 4, adapted, source, row=2)
    assert again == add(anew, 4, adapted, source, row=2)
    assert again[1] == 8.0


# Health ----------------------------------------------------------------------------------------


def most_sure(output: dict[str, Tensor]) -> Tensor:
    return output["objectness"].float().amax(dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_health_function_is_asked_about_any_output(dtype: torch.dtype) -> None:
    evidence = Evidence(2, health=most_sure)
    weights, differences = np.zeros(0), np.zeros(0)
    for step in range(20):
        ours, theirs = (scores(6, 9, seed=k + step).to(dtype) for k in (0, 50))
        pair = {"objectness": ours}, {"objectness": theirs}
        values = evidence.add([step], [1], [0] * 6, *pair)
        assert values is not None
        found = values[0].tolist()
        new = ours.double().numpy().max(axis=1) - theirs.double().numpy().max(axis=1)
        weights = np.concatenate([weights * (1.0 - 6 / 256.0), np.ones(6)])
        differences = np.concatenate([differences, new])
        assert found[0] == pytest.approx(np.average(differences, weights=weights), abs=1e-10)
        assert found[1] == pytest.approx(weights.sum())
        assert math.isnan(found[2])


def test_health_of_equal_outputs_is_exactly_equal_and_rows_have_their_own() -> None:
    evidence = Evidence(3, health=lambda output: output.mean(dim=1))
    low, high = torch.zeros(4, 2), torch.ones(4, 2)
    mixed = torch.stack([low, high], dim=1).flatten(0, 1)
    found = evidence.add([0] * 2, [2, 0], [0, 1] * 4, mixed, torch.zeros(8, 2))
    assert found is not None
    assert found[:, :2].tolist() == [[0.0, 4.0], [1.0, 4.0]]
    evidence.forget([0])
    assert add(evidence, 1, low, high)[:2] == [-1.0, 4.0]


def test_health_may_be_a_whole_number_or_a_truth_and_modes_do_not_matter() -> None:
    with torch.inference_mode():
        output = torch.tensor([[0.0, 1.0], [3.0, 1.0]])
    for health in (lambda o: o.argmax(dim=1), lambda o: o[:, 1] > o[:, 0]):
        assert add(Evidence(1, health=health), 0, output, 0.0 * output)[0] == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_health_that_is_not_finite_leaves_no_lasting_trace(bad: float) -> None:
    evidence = Evidence(1, health=lambda output: output)
    good = torch.tensor([0.5, 0.5])
    for adapted, source in ((good * bad, good), (good, good * bad), (good * bad, good * bad)):
        assert add(evidence, 0, adapted, source)[0] == 0.0
    assert add(evidence, 0, torch.tensor([2.5, bad]), good)[0] == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(
    ("health", "got"),
    [
        (lambda output: output, "[4, 3]"),
        (lambda output: output.mean(), "[]"),
        (lambda output: output[:, :1], "[4, 1]"),
        (lambda output: output[:2, 0], "[2]"),
        (lambda output: output.mean().item(), "float"),
        (lambda output: output[: 3 + int(output[0, 0]), 0], "[3]"),  # of the source alone
    ],
)
def test_health_is_one_number_a_frame(health: Any, got: str) -> None:
    evidence = Evidence(1, health=health)
    with pytest.raises(DataError) as caught:
        add(evidence, 0, torch.ones(4, 3), torch.zeros(4, 3))
    assert str(caught.value) == (
        f"The guard's `health` must return one number a frame, [4], got {got}."
    )
