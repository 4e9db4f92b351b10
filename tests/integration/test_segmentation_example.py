"""The segmentation example: what it draws is what it labels, and adapting helps where it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import streamadapt as sa
from examples.scenes import CLASSES, SIZE, cameras, scenes
from examples.segmentation import train as training
from examples.segmentation.network import SegmentationNetwork, load
from examples.segmentation.run import adapted, frozen, iou

_FINER = 16  # times as many pixels in the independent drawing


def _drawn_by_pillow(outlines: np.ndarray) -> np.ndarray:
    """The mask of some outlines: Pillow's ellipses and polygons, from corners, on a finer grid."""
    mask = Image.new("L", (SIZE * _FINER, SIZE * _FINER))
    draw = ImageDraw.Draw(mask)
    for kind, x, y, area, angle, aspect in outlines:
        if kind == 1:
            radius = np.sqrt(area / np.pi)
            box = np.array([x - radius, y - radius, x + radius, y + radius])
            draw.ellipse((box * _FINER).tolist(), fill=1)
            continue
        if kind == 2:
            half = np.sqrt([area / aspect, area * aspect]) / 2
            corners = half * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
        else:
            turns = np.pi / 3 + 2 * np.pi / 3 * np.arange(3)
            reach = np.sqrt(4 * area / np.sqrt(3)) / np.sqrt(3)
            corners = reach * np.stack([np.cos(turns), np.sin(turns)], 1)
        cosine, sine = np.cos(angle), np.sin(angle)
        turned = corners @ np.array([[cosine, sine], [-sine, cosine]]) + [x, y]
        draw.polygon([tuple(one) for one in (turned * _FINER).tolist()], fill=int(kind))
    middle = np.arange(SIZE) * _FINER + _FINER // 2
    return np.asarray(mask)[np.ix_(middle, middle)]


def test_masks_are_of_the_shapes_that_were_drawn() -> None:
    drawn = scenes(64, seed=7)
    wrong = [
        (_drawn_by_pillow(outlines) != mask).mean()
        for outlines, mask in zip(drawn.outlines, drawn.masks, strict=True)
    ]
    assert np.mean(wrong) < 0.002  # pixels whose centre lies on an outline
    shown = np.bincount(drawn.masks.reshape(-1), minlength=len(CLASSES)) / drawn.masks.size
    assert shown[1:].max() < 1.5 * shown[1:].min()


def test_a_picture_differs_from_its_ground_where_its_mask_says() -> None:
    drawn = scenes(64, seed=8)
    apart = np.abs(drawn.pictures.astype(int) - drawn.grounds).mean(-1)
    there = drawn.masks > 0
    near = there
    for _ in range(2):  # pixels across an outline are mixed, at a corner up to the second
        for axis in (1, 2):
            near = near | np.roll(near, 1, axis) | np.roll(near, -1, axis)
    ground = ~near
    assert apart[ground].max() == 0
    assert (apart[there] > 10).mean() > 0.97


def test_a_seed_gives_one_set_and_another_gives_another() -> None:
    one, same, other = scenes(4, seed=1), scenes(4, seed=1), scenes(4, seed=2)
    assert np.array_equal(one.pictures, same.pictures) and np.array_equal(one.masks, same.masks)
    assert not np.array_equal(one.pictures, other.pictures)


def test_colours_do_not_tell_the_classes_apart() -> None:
    drawn = scenes(400, seed=9)
    means = np.stack([drawn.pictures[drawn.masks == k].mean(0) for k in range(1, len(CLASSES))])
    spread = drawn.pictures[drawn.masks > 0].std(0)
    assert np.all(np.ptp(means, axis=0) < 0.25 * spread)


def test_iou_of_a_hand_example() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]])
    found = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [2, 2, 2, 2]])
    assert iou(found, truth).tolist() == pytest.approx([4 / 5, 3 / 4, 2 / 4, 0.0])


def test_adapting_helps_in_fog_and_in_the_dark_and_costs_nothing_where_it_is_clear() -> None:
    model, settled = load(), 64  # frames: two and a half seconds
    given, drawn = cameras(160, worlds=(("none", 1), ("fog", 4), ("low_light", 4)))
    scores = np.array(
        [
            [
                iou(one[settled:], true.masks[settled:]).mean()
                for one, true in zip(each, drawn, strict=True)
            ]
            for each in ([frozen(model, own) for own in given], adapted(model, given))
        ]
    )
    clean, fog, dark = scores[1] - scores[0]
    assert scores[0, 0] > 0.85
    assert fog > 0.1 and dark > 0.03
    assert clean > -0.005


def test_the_weights_load_into_a_model_that_can_be_wrapped() -> None:
    with sa.StreamProcessor(load()) as processor, torch.inference_mode():
        assert processor(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, len(CLASSES), SIZE, SIZE)


def test_training_gets_somewhere_and_packs_what_it_trained(tmp_path) -> None:
    network = training.train(count=64, steps=12)
    assert isinstance(network, SegmentationNetwork) and not network.training
    path = tmp_path / "weights.safetensors"
    training.pack(network, path)
    again = load(path)
    x, y = training.tensors(scenes(16, seed=5))
    with torch.inference_mode():
        one, other = network(x), again(x)
        start = SegmentationNetwork().eval()(x)
    losses = [torch.nn.functional.cross_entropy(scores, y) for scores in (one, start)]
    assert losses[0] < losses[1]
    torch.testing.assert_close(other, one, rtol=0.05, atol=0.05)
