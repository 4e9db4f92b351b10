"""The detection example: frozen BatchNorms are found, adapted and given back; answers are lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import streamadapt as sa
from examples.detection import train as training
from examples.detection.average_precision import average_precision, mean_average_precision
from examples.detection.network import (
    PREPARE,
    Detector,
    FrozenBatchNorm2d,
    boxes_of,
    frozen_copy,
    load,
    overlaps,
)
from examples.detection.run import adapted, frozen, score
from examples.enlarged import EnlargedVideoSink
from examples.scenes import CLASSES, SIZE, cameras, scenes
from streamadapt.pipeline import AnnotatedVideoSink
from streamadapt.taps import take_inventory


def _found(boxes, scores, labels=None):
    labels = [1] * len(boxes) if labels is None else labels
    return {"boxes": np.array(boxes).reshape(-1, 4), "labels": labels, "scores": scores}


def test_average_precision_of_a_hand_example() -> None:
    left, right = [0, 0, 10, 10], [20, 0, 30, 10]
    truth = [([left, right], [1, 1]), ([left], [1]), ([left], [2])]
    found = [
        # right (IoU 0.9), found before, right (IoU 0.8)
        _found([[0, 0, 9, 10], [0, 0, 10, 10], [20, 0, 28, 10]], [0.9, 0.8, 0.6]),
        _found([[0, 0, 4, 10]], [0.7]),  # IoU 0.4
        _found([left, left], [0.95, 0.99], labels=[1, 2]),  # of another class, right
    ]
    # Class 1 by score: wrong, right, wrong, wrong, right. Precision at recall 1/3: 1/2, at 2/3:
    # 2/5; the third box is not found.
    assert average_precision(found, truth, label=1) == pytest.approx((1 / 2 + 2 / 5) / 3)
    assert average_precision(found, truth, label=2) == 1.0
    assert mean_average_precision(found, truth, labels=[1, 2, 3]) == pytest.approx((0.3 + 1) / 2)


def test_precision_is_the_best_at_a_recall_or_beyond() -> None:
    box = [0, 0, 10, 10]
    truth = [([box], [1]), ([box], [1]), ([], [])]
    found = [_found([box], [0.5]), _found([box], [0.6]), _found([box], [0.9])]
    # wrong, right, right: precision 1/2 and 2/3
    assert average_precision(found, truth, label=1) == pytest.approx(2 / 3)
    assert np.isnan(average_precision(found, truth, label=2))
    assert average_precision([_found([], [])] * 3, truth, label=1) == 0.0


def test_targets_say_where_the_boxes_are() -> None:
    drawn = scenes(48, seed=11)
    classes, offsets = training.targets(drawn)
    boxes, lost = boxes_of(offsets), 0
    for k, (own, labels) in enumerate(zip(drawn.boxes, drawn.labels, strict=True)):
        there = classes[k] > 0
        same = overlaps(boxes[k][there], torch.from_numpy(own))
        assert torch.all(same.max(1).values > 0.999)
        assert classes[k][there].tolist() == labels[same.argmax(1).numpy()].tolist()
        lost += len(own) - int(there.sum())
    assert lost <= 3  # two centres in one cell


def test_boxes_hold_what_is_visible() -> None:
    drawn = scenes(48, seed=12)
    for mask, boxes, labels in zip(drawn.masks, drawn.boxes, drawn.labels, strict=True):
        covered = np.zeros_like(mask, dtype=bool)
        for (left, top, right, bottom), label in zip(boxes.astype(int), labels, strict=True):
            covered[top:bottom, left:right] = True
            inside = mask[top:bottom, left:right] == label
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert np.all(covered[mask > 0])


def test_every_frozen_batchnorm_is_found_and_given_back() -> None:
    model = load()
    layers = take_inventory(model).layers
    norms = [one for one in model.modules() if isinstance(one, FrozenBatchNorm2d)]
    assert [layer.module for layer in layers] == norms and len(norms) == 7
    assert {layer.kind for layer in layers} == {"frozen"}
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with sa.StreamProcessor(model, estimator=sa.estimators.EMA(), class_scores=False) as processor:
        with torch.inference_mode():
            processor(torch.rand(4, 3, SIZE, SIZE))
        moved = model.state_dict()
        assert all(
            torch.equal(moved[name], before[name]) != name.endswith(("running_mean", "running_var"))
            for name in before
        )
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_freezing_changes_no_answer() -> None:
    torch.manual_seed(0)
    trained = Detector(nn.BatchNorm2d)
    with torch.no_grad():
        trained.maps(torch.rand(8, 3, SIZE, SIZE))
        deployed, x = frozen_copy(trained.eval()), torch.rand(2, 3, SIZE, SIZE)
        for one, other in zip(trained.maps(x), deployed.maps(x), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_adapting_helps_in_fog_and_in_the_dark_and_costs_nothing_where_it_is_clear() -> None:
    model = load()
    given, drawn = cameras(120, worlds=(("none", 1), ("fog", 4), ("low_light", 4)))
    before = [frozen(model, own) for own in given]
    after = adapted(model, given)
    scores = np.array(
        [
            [score(one, true) for one, true in zip(each, drawn, strict=True)]
            for each in (before, after)
        ]
    )
    clean, fog, dark = scores[1] - scores[0]
    assert scores[0, 0] > 0.9
    assert fog > 0.04 and dark > 0.2
    assert clean > -0.01


def test_a_camera_has_its_own_detections_and_they_can_be_drawn(tmp_path) -> None:
    av, model = pytest.importorskip("av"), load()
    given, _ = cameras(3, worlds=(("none", 1), ("none", 1)))
    sinks = (
        AnnotatedVideoSink(tmp_path / "small", labels=CLASSES),
        EnlargedVideoSink(tmp_path / "large", times=4),
    )
    after = adapted(model, given, sinks=sinks)
    alone = [frozen(model, own) for own in given]
    for one, other in zip(after, alone, strict=True):
        assert len(one) == len(other) == 3
        for found, wanted in zip(one, other, strict=True):
            assert set(found) == {"boxes", "labels", "scores"}
            assert found["boxes"].shape == (len(found["labels"]), 4)
            assert found["labels"].tolist()[:1] == wanted["labels"].tolist()[:1]
    for folder, side in (("small", SIZE), ("large", 4 * SIZE)):
        paths = sorted((tmp_path / folder).glob("*.mp4"))
        assert len(paths) == 2
        for path in paths:
            with av.open(str(path)) as container:
                video = container.streams.video[0]
                assert (video.width, video.height, video.frames) == (side, side + 26, 3)


def test_torchvision_style_lists_of_pictures_go_through_a_pipeline() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = load()

        def forward(self, pictures):
            return self.detector(torch.stack(list(pictures)))

    given, _ = cameras(2, worlds=(("none", 1),))
    with sa.StreamProcessor(Lists(), class_scores=False) as processor:
        results = list(processor.run(given[0], preprocess=PREPARE, transform=list))
    found = [output for result in results for _, output in result]
    assert [len(one["boxes"]) == len(one["scores"]) for one in found] == [True, True]
    assert results[0].outcome == "updated"


def test_training_gets_somewhere() -> None:
    torch.manual_seed(0)
    drawn = scenes(16, seed=5)
    x, wanted = training.tensors(drawn)[0], training.targets(drawn)
    trained = [training.train(count=64, steps=steps) for steps in (1, 12)]
    with torch.inference_mode():
        before, after = (float(training.loss(*one.maps(x), *wanted)) for one in trained)
    assert after < before
