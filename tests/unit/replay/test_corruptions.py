"""Degradations: every one, at every size a user may have."""

from __future__ import annotations

import builtins
from itertools import pairwise

import numpy as np
import pytest

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.corruptions import CORRUPTIONS, SEVERITIES, corrupt, fractal_noise

DAMAGING = [name for name in CORRUPTIONS if name != "none"]
SIZES = [(8, 8), (24, 24), (32, 32), (9, 40), (96, 64)]


def striped(count: int, height: int, width: int) -> np.ndarray:
    """Coloured stripes in several directions: edges, dark and bright areas, no texture."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[0:height, 0:width]
    frames = []
    for _ in range(count):
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        wave = np.cos(angle) * columns / width + np.sin(angle) * rows / height
        lit = np.sin(2 * np.pi * 1.7 * wave + phase) > 0
        frames.append(np.where(lit[..., None], 240, 15) * rng.uniform(0.4, 1, size=3))
    return np.stack(frames).astype(np.uint8)


def damage(clean: np.ndarray, name: str, severity: int) -> float:
    spoiled = corrupt(clean, name, severity=severity, rng=np.random.default_rng(0))
    return float(np.abs(spoiled.astype(int) - clean).mean())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", DAMAGING)
def test_damage_grows_with_every_step_of_severity(name: str, size: tuple[int, int]) -> None:
    clean = striped(32, *size)
    levels = [damage(clean, name, severity) for severity in SEVERITIES]
    assert levels[0] > 0.2
    assert all(low < high for low, high in pairwise(levels)), levels


def test_damage_grows_at_photo_size() -> None:
    clean = striped(3, 224, 224)
    for name in DAMAGING:
        levels = [damage(clean, name, severity) for severity in SEVERITIES]
        assert all(low < high for low, high in pairwise(levels)), (name, levels)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_keeps_shape_and_dtype_and_leaves_the_input_alone(name: str) -> None:
    clean = striped(5, 17, 12)
    before = clean.copy()
    spoiled = corrupt(clean, name, severity=5, rng=np.random.default_rng(0))
    assert spoiled.shape == clean.shape
    assert spoiled.dtype == np.uint8
    assert not np.shares_memory(spoiled, clean)
    np.testing.assert_array_equal(clean, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_generator_state_gives_the_same_bits(name: str) -> None:
    clean = striped(6, 24, 24)
    first, second = (
        corrupt(clean, name, severity=4, rng=np.random.default_rng(7)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "motion_blur", "fog", "low_light", "colour_cast"]
)
def test_equal_frames_of_one_call_are_spoiled_differently(name: str) -> None:
    clean = np.repeat(striped(1, 24, 24), 2, axis=0)
    one, other = corrupt(clean, name, severity=4, rng=np.random.default_rng(0))
    assert (one != other).mean() > 0.1


def test_none_changes_nothing_and_no_frames_are_fine() -> None:
    clean = striped(4, 8, 8)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(corrupt(clean, "none", severity=5, rng=rng), clean)
    for name in CORRUPTIONS:
        assert corrupt(clean[:0], name, severity=1, rng=rng).shape == (0, 8, 8, 3)


def test_blurs_and_pixels_keep_a_flat_image_and_the_mean_of_any() -> None:
    flat = np.full((2, 20, 31, 3), 90, dtype=np.uint8)
    lively = striped(8, 64, 64)
    for name in ("defocus_blur", "motion_blur", "pixelate"):
        for severity in SEVERITIES:
            rng = np.random.default_rng(0)
            np.testing.assert_array_equal(corrupt(flat, name, severity=severity, rng=rng), flat)
            spoiled = corrupt(lively, name, severity=severity, rng=rng)
            assert abs(spoiled.mean() - lively.mean()) < 2


def test_defocus_agrees_with_a_direct_convolution() -> None:
    clean = striped(1, 16, 16)
    spoiled = corrupt(clean, "defocus_blur", severity=5, rng=np.random.default_rng(0))
    radius = 0.5 + 0.07 * 16
    reach = int(np.ceil(radius + 0.5))
    padded = np.pad(clean[0].astype(np.float64), [(reach, reach)] * 2 + [(0, 0)], mode="symmetric")
    total = np.zeros((16, 16, 3))
    weights = 0.0
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            weight = min(max(radius + 0.5 - np.hypot(row, column), 0.0), 1.0)
            shifted = padded[reach + row : reach + row + 16, reach + column : reach + column + 16]
            total += weight * shifted
            weights += weight
    np.testing.assert_allclose(spoiled[0], total / weights, atol=0.51)


def test_noise_has_the_moments_of_its_kind() -> None:
    grey = np.full((64, 32, 32, 3), 100, dtype=np.uint8)
    noisy = corrupt(grey, "gaussian_noise", severity=2, rng=np.random.default_rng(0))
    assert abs(noisy.mean() - 100) < 0.2
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.02)
    photons = corrupt(grey, "shot_noise", severity=1, rng=np.random.default_rng(0))
    assert abs(photons.mean() - 100) < 0.3
    assert photons.std() == pytest.approx(255 * np.sqrt(100 / 255 / 60), rel=0.02)


def test_light_goes_the_way_its_name_says() -> None:
    clean = striped(8, 32, 32)

    def mean(name: str) -> float:
        return float(corrupt(clean, name, severity=4, rng=np.random.default_rng(0)).mean())

    assert mean("low_light") < clean.mean() - 20
    assert mean("over_exposure") > clean.mean() + 20
    assert abs(mean("contrast") - clean.mean()) < 1
    black = np.zeros((2, 24, 24, 3), dtype=np.uint8)
    assert corrupt(black, "fog", severity=3, rng=np.random.default_rng(0)).min() > 40


def test_a_colour_cast_tints_grey_and_keeps_its_light() -> None:
    grey = np.full((64, 8, 8, 3), 120, dtype=np.uint8)
    for severity in SEVERITIES[:3]:  # beyond, highlights clip
        tinted = corrupt(grey, "colour_cast", severity=severity, rng=np.random.default_rng(0))
        assert (tinted == tinted[:, :1, :1]).all()  # the whole frame alike
        light = (tinted[:, 0, 0] / 255.0) ** 2.2
        np.testing.assert_allclose(light.mean(axis=1), (120 / 255) ** 2.2, rtol=0.02)
        strongest = light.max(axis=0)  # every colour has its turn
        np.testing.assert_allclose(strongest, strongest.mean(), rtol=0.05)
        assert (light.argmax(axis=1) != light[0].argmax()).any()


def test_fog_is_uneven_and_spans_its_range() -> None:
    for size in (8, 32, 100):
        field = fractal_noise(4, size, size, rng=np.random.default_rng(0))
        assert field.dtype == np.float32
        np.testing.assert_array_equal(field.min(axis=(1, 2)), 0)
        np.testing.assert_array_equal(field.max(axis=(1, 2)), 1)
        neighbours = np.abs(np.diff(field, axis=2)).mean()
        assert neighbours < field.std()  # clouds, not noise


def test_says_what_is_wrong() -> None:
    clean = striped(1, 8, 8)
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigurationError, match=r"Unknown corruption `smog`\. Known .*: none, g"):
        corrupt(clean, "smog", severity=1, rng=rng)
    for severity in (0, 6, True):
        with pytest.raises(ConfigurationError, match="`severity` must be a whole number from 1"):
            corrupt(clean, "fog", severity=severity, rng=rng)
    with pytest.raises(
        DataError, match=r"must be uint8 \[N, H, W, 3\], got float32 \[1, 8, 8, 3\]"
    ):
        corrupt(clean.astype(np.float32), "fog", severity=1, rng=rng)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"at least 8 x 8 pixels, got 7 x 8"):
        corrupt(clean[:, :7], "fog", severity=1, rng=rng)


def test_jpeg_without_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_pillow(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("PIL"):
            raise ImportError(name)
        return original(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(ConfigurationError, match=r"pip install streamadapt\[replay\]"):
        corrupt(striped(1, 8, 8), "jpeg", severity=1, rng=np.random.default_rng(0))
