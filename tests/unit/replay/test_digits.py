"""The shipped digits are held out, and the shipped network reads them in clear weather only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from streamadapt.replay import digits as shipped


@pytest.fixture(scope="module")
def network() -> shipped.DigitsNetwork:
    return shipped.digits_network()


def test_digits_have_the_documented_layout() -> None:
    x, y = shipped.digits()
    assert x.shape == (896, 8, 8, 3)
    assert (x.dtype, y.dtype) == (np.uint8, np.int64)
    assert x.min() == 0 and x.max() == 255
    assert np.array_equal(x[..., 0], x[..., 1]) and np.array_equal(x[..., 0], x[..., 2])
    # Every class is there, about evenly, and the order does not give the class away.
    assert np.bincount(y, minlength=10).min() >= 85
    assert (y[1:] == y[:-1]).mean() < 0.2


def test_digits_path_is_a_labelled_npz() -> None:
    with np.load(shipped.digits_path()) as archive:
        assert sorted(archive) == ["x", "y"]
        assert np.array_equal(archive["x"], shipped.digits()[0])


def test_assets_are_small() -> None:
    for path in shipped.digits_path().parent.iterdir():
        assert path.stat().st_size <= 300_000, path.name


def test_network_is_ready_to_serve(network: shipped.DigitsNetwork) -> None:
    assert not any(module.training for module in network.modules())
    assert not any(tensor.is_meta for tensor in network.state_dict().values())
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 5
    # Trained statistics, not the initial zeros and ones.
    assert all(norm.running_mean is not None and norm.running_mean.abs().sum() for norm in norms)


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    shipped.digits_network()
    assert torch.equal(before, torch.random.get_rng_state())


def test_clear_accuracy(network: shipped.DigitsNetwork) -> None:
    x, y = shipped.digits()
    with torch.inference_mode():
        predicted = network(shipped.normalize(shipped.upscale(x))).argmax(1).numpy()
    assert (predicted == y).mean() >= 0.97


@pytest.mark.parametrize("world", ["fog", "night"])
def test_statistics_carry_the_world(world: str) -> None:
    """In fog and at night the weights are still right: only the statistics are not."""
    x, y = shipped.digits()
    frames = shipped.upscale(x) / 255
    if world == "fog":
        frames = 0.3 * frames + 0.55
    else:
        frames = 0.15 * frames + np.random.default_rng(1).normal(scale=0.03, size=frames.shape)
    batch = shipped.normalize(np.rint(255 * frames.clip(0, 1)).astype(np.uint8))
    network = shipped.digits_network()
    with torch.inference_mode():
        frozen = (network(batch).argmax(1).numpy() == y).mean()
        adapted = (network.train()(batch).argmax(1).numpy() == y).mean()
    assert frozen < 0.80
    assert adapted > 0.85


def test_upscale_keeps_flat_images_flat_and_is_linear_in_between() -> None:
    flat = np.full((2, 8, 8, 3), 77, dtype=np.uint8)
    assert np.array_equal(shipped.upscale(flat), np.full((2, 24, 24, 3), 77, dtype=np.uint8))
    step = np.zeros((1, 1, 2, 3), dtype=np.uint8)
    step[:, :, 1] = 240
    # Pixel centres of the 6 new columns lie at -1/3, 0, 1/3, 2/3, 1, 4/3 of the old ones.
    assert shipped.upscale(step, size=6)[0, 0, :, 0].tolist() == [0, 0, 80, 160, 240, 240]


def test_no_shipped_digit_was_trained_on() -> None:
    pytest.importorskip("sklearn")
    from benchmarks.make_digits import images_and_labels, split

    images, labels = images_and_labels()
    train, _ = split(labels)
    x, y = shipped.digits()
    row_of = {image.tobytes(): row for row, image in enumerate(images)}
    assert len(row_of) == len(images) == 1797, "two equal digits would blur the two halves"
    rows = np.array([row_of[image.tobytes()] for image in x])
    assert len(set(rows)) == len(rows)
    assert not set(rows) & set(train)
    assert len(train) + len(rows) == len(images)
    assert np.array_equal(labels[rows], y)
