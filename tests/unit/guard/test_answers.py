"""What is told of answers without labels, against its definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamadapt.guard.answers import Answers, estimated_gain, information
from tests.unit.guard import numpy_answers as reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def scores(*shape: int, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return sharpness * torch.randn(*shape, generator=made)


def judged(output: Tensor) -> Answers:
    answers = Answers.of(output, len(output))
    assert answers is not None
    return answers


def wide(value: object) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3), (1, 2), (4, 6, 7), (3, 19, 8, 9), (2, 4, 3, 5, 6)])
def test_every_position_of_a_frame_is_an_answer(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    output = scores(*shape).to(dtype)
    p = reference.softmax(output.double().numpy().reshape(*shape[:2], -1))
    answers = judged(output)
    assert answers.probabilities.dtype == answers.entropy.dtype == torch.float64
    np.testing.assert_allclose(answers.probabilities, p.mean(axis=2), atol=1e-14)
    np.testing.assert_allclose(
        answers.entropy, reference.entropy(p, axis=1).mean(axis=1), atol=1e-13
    )
    np.testing.assert_array_equal(answers.classes, p.argmax(axis=1))


@pytest.mark.parametrize(
    "shape", [(64, 48), (256, 256), (512, 1024), (1024, 2048), (720, 1281), (40_000,), (9, 64, 64)]
)
def test_of_a_large_image_positions_are_taken_from_all_over(shape: tuple[int, ...]) -> None:
    for axis in range(len(shape)):
        quarter = torch.arange(shape[axis]) * 4 // shape[axis]  # each has a class of its own
        certain = 50.0 * torch.nn.functional.one_hot(quarter, 4).float().T
        view = [1, 4] + [1] * len(shape)
        view[2 + axis] = shape[axis]
        answers = judged(certain.view(view).expand(1, 4, *shape))
        assert 256 <= answers.classes.shape[1] <= 1024
        np.testing.assert_allclose(answers.probabilities, np.full((1, 4), 0.25), atol=0.09)


@pytest.mark.parametrize(
    "output",
    [
        None,
        {"scores": torch.zeros(4, 3)},
        {"logits": torch.zeros(3, 3)},
        {"logits": torch.zeros(4, 100, 3), "pred_boxes": torch.zeros(4, 100, 4)},
        {"out": None},
        [torch.zeros(4, 3)],
        torch.zeros(4),
        torch.zeros(3, 3),
        torch.zeros(4, 1),
        torch.zeros(4, 0),
        torch.zeros(4, 3, 0, 5),
        torch.zeros(4, 3, dtype=torch.long),
        torch.zeros(4, 3, dtype=torch.complex64),
    ],
)
def test_what_is_no_class_scores_of_these_frames_is_not_judged(output: object) -> None:
    assert Answers.of(output, 4) is None


@pytest.mark.parametrize("name", ["out", "logits"])
def test_scores_are_found_in_what_segmentation_models_and_transformers_return(name: str) -> None:
    output = scores(6, 4)
    found = Answers.of({"aux": torch.zeros(6, 9), name: output}, 6)
    alone = Answers.of(output, 6)
    assert found is not None and alone is not None
    torch.testing.assert_close(found.probabilities, alone.probabilities, rtol=0.0, atol=0.0)
    assert torch.equal(found.classes, alone.classes)


def test_of_no_frames_nothing_is_told() -> None:
    assert Answers.of(torch.zeros(0, 3), 0) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_are_not_finite_hurt_no_other_frame_and_stay_probabilities(
    dtype: torch.dtype,
) -> None:
    output = scores(6, 4).to(dtype)
    broken = output.clone()
    broken[1] = math.nan
    broken[2, 3] = math.inf
    broken[3, :2] = -math.inf
    broken[4] = -math.inf
    answers, before = judged(broken), judged(output)
    for part in ("probabilities", "entropy", "classes"):
        assert torch.equal(getattr(answers, part)[[0, 5]], getattr(before, part)[[0, 5]])
    assert torch.allclose(answers.probabilities.sum(dim=1), wide(1.0))
    assert answers.entropy[[1, 4]].tolist() == pytest.approx([math.log(4)] * 2)  # no answer
    assert answers.probabilities[2].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert answers.probabilities[3, :2].tolist() == [0.0, 0.0]
    assert answers.entropy.isfinite().all()


def test_modes_of_the_caller_do_not_matter() -> None:
    output = scores(5, 4, 3)
    plain = judged(output)
    with torch.inference_mode():
        inside = judged(output + 0.0)
        made = output.double() + 0.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = judged(output)
    for answers in (inside, judged(made), cast, judged(output.clone().requires_grad_())):
        for part in ("probabilities", "entropy", "classes"):
            found = getattr(answers, part)
            assert torch.equal(found, getattr(plain, part))
            assert not found.is_inference() and not found.requires_grad


def test_some_frames_can_be_taken_in_any_order() -> None:
    output = scores(6, 4, 5)
    chosen = torch.tensor([4, 0, 4])
    found, wanted = judged(output).take(chosen), judged(output[chosen])
    for part in ("probabilities", "entropy", "classes"):
        assert torch.equal(getattr(found, part), getattr(wanted, part))


# Information -----------------------------------------------------------------------------------


def told(answers: Answers) -> float:
    return information(answers.probabilities.mean(dim=0), answers.entropy.mean()).item()


@settings(max_examples=50)
@given(
    st.integers(1, 12), st.integers(2, 9), st.integers(1, 4), st.floats(0.0, 40.0), st.integers(0)
)
def test_information_is_the_mutual_information_of_frame_and_answer(
    frames: int, classes: int, positions: int, sharpness: float, seed: int
) -> None:
    output = scores(frames, classes, positions, seed=seed % 2**31, sharpness=sharpness)
    camera = reference.Camera(window=math.inf, apart=math.inf)
    camera.show(0, output.double().numpy())
    found = told(judged(output))
    # A position's own doubt counts as doubt, so within a frame nothing more can be told.
    assert found == pytest.approx(camera.information, abs=1e-12)
    assert -1e-12 <= found <= math.log(classes) + 1e-12
    if positions == 1:
        assert found <= math.log(frames) + 1e-12


def test_one_answer_to_everything_and_no_certain_answer_tell_nothing() -> None:
    assert told(judged(50.0 * torch.eye(4)[[2] * 9])) == pytest.approx(0.0, abs=1e-12)
    assert told(judged(torch.zeros(9, 4))) == pytest.approx(0.0, abs=1e-12)
    assert told(judged(200.0 * torch.eye(4))) == pytest.approx(math.log(4))


# The gain --------------------------------------------------------------------------------------


def gain(
    own: float, source: float, flips: float, unequal: float, frames: float, classes: int
) -> float:
    return estimated_gain(
        wide(own), wide(source), wide(flips), wide(unequal), wide(frames), classes
    ).item()


@settings(max_examples=50)
@given(
    st.floats(0.0, 2.0),
    st.floats(0.0, 2.0),
    st.floats(-1.0, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 300.0),
    st.integers(2, 1000),
)
def test_the_gain_is_the_published_formula(
    own: float, source: float, flips: float, unequal: float, frames: float, classes: int
) -> None:
    most = math.log(min(classes, max(frames, 2.0)))
    wanted = 0.80 * (own - source) / most - 0.49 * flips - 0.42 * unequal * (source / most) ** 2
    assert gain(own, source, flips, unequal, frames, classes) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=50)
@given(st.floats(-1e-12, 5.0), st.floats(0.0, 300.0), st.integers(2, 1000))
def test_where_nothing_differs_the_gain_is_exactly_zero(
    told: float, frames: float, classes: int
) -> None:
    assert gain(told, told, 0.0, 0.0, frames, classes) == 0.0
    # What is less than nothing is rounding.
    assert gain(-1e-16, 0.0, 0.0, 0.0, frames, classes) == 0.0
