"""Preprocessing against Pillow and arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamadapt.errors import ConfigurationError
from streamadapt.pipeline import Preprocess


def picture(height: int = 120, width: int = 200) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


@pytest.mark.parametrize("size", [(48, 64), (30, 50), (240, 320)])
def test_resizing_is_that_of_pillow(size: tuple[int, int]) -> None:
    from PIL import Image

    given = picture()
    wanted = Image.fromarray(given).resize(size[::-1], Image.Resampling.BILINEAR)
    found = Preprocess(resize=size, divisor=1.0)(given)
    wanted_pixels = torch.from_numpy(np.array(wanted)).permute(2, 0, 1).float()
    assert found.shape == (3, *size)
    assert (found - wanted_pixels).abs().max() <= 2.0
    assert (found - wanted_pixels).abs().mean() < 0.1


def test_normalisation_is_that_of_the_formula() -> None:
    given = picture(16, 16)
    found = Preprocess.parse("normalize=imagenet")(given)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    wanted = (given / 255.0 - mean) / std
    np.testing.assert_allclose(found.numpy().transpose(1, 2, 0), wanted, atol=2e-6)


def test_channels_come_before_normalisation() -> None:
    given = np.zeros((2, 2, 3), np.uint8)
    given[..., 0] = 255  # red
    found = Preprocess(mean=(1.0, 2.0, 3.0), channels="BGR")(given)
    assert found[:, 0, 0].tolist() == [-1.0, -2.0, -2.0]


def test_fits() -> None:
    given = picture()
    assert Preprocess(resize=64, fit="stretch")(given).shape == (3, 64, 64)
    assert Preprocess(resize=60, fit="shortest")(given).shape == (3, 60, 100)
    assert Preprocess(resize=60, fit="shortest", crop=56)(given).shape == (3, 56, 56)
    boxed = Preprocess(resize=(100, 100), fit="letterbox", divisor=1.0)(given)
    assert boxed.shape == (3, 100, 100)
    assert (boxed[:, :19] == 114).all() and (boxed[:, 82:] == 114).all()
    assert not (boxed[:, 30] == 114).all()
    wanted = picture()[56:64, 96:104].transpose(2, 0, 1)
    np.testing.assert_array_equal(Preprocess(crop=8, divisor=1.0)(given).numpy(), wanted)
    assert Preprocess()(given[:, :, 0]).shape == (3, 120, 200)  # grey


def test_it_is_recorded_as_a_text_that_tells_two_apart() -> None:
    texts = ["resize=224", "resize=224x224", "resize=224,channels=BGR", "normalize=half", ""]
    found = [str(Preprocess.parse(text)) for text in texts]
    assert found[0] == found[1] and len(set(found)) == 4
    table = {"resize": [224, 224], "normalize": "imagenet", "fit": "shortest"}
    parsed = Preprocess.parse("resize=224,normalize=imagenet,fit=shortest")
    assert Preprocess.from_mapping(table) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "resize=big",
        "resize=1x2x3",
        "crop=0",
        "normalize=imagnet",
        "mean=1:2",
        "std=0:1:1",
        "fit=fill",
        "channels=RBG",
        "grey",
        "divisor=0",
        "size=3",
    ],
)
def test_wrong_steps(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Preprocess.parse(text)
    assert "\n" not in str(caught.value)


def test_a_picture_that_cannot_be_written_to_is_one_all_the_same() -> None:
    given = picture()
    wanted = Preprocess(resize=24)(given)
    given.flags.writeable = False
    assert torch.equal(Preprocess(resize=24)(given), wanted)


def test_wrong_pictures() -> None:
    with pytest.raises(ConfigurationError, match="smaller than the crop"):
        Preprocess(crop=224)(picture())
    for wrong in (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ConfigurationError, match="uint8"):
            Preprocess()(wrong)
    with pytest.raises(ConfigurationError, match="preprocessing"):
        Preprocess.from_mapping({"size": 3})
