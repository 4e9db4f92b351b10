"""Camera-like degradations of uint8 frames: seeded, vectorised over the batch, five severities.

Every scale is a share of the image size, so that severity 3 means the same trouble at 8 x 8 and at
224 x 224. The random draws do not depend on the severity: one generator state gives one pattern,
which a higher severity makes stronger. Two frames of one call get different patterns, and the
pattern of a frame depends on its place in the call: whoever needs frames that do not depend on how
they are batched calls `corrupt` on fixed groups of frames, as `streamadapt.replay.Stream` does.

Results are reproducible to the bit for one NumPy build on one kind of processor; vector units that
round `exp` or `pow` differently can move single pixels by one grey level.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import ConfigurationError, DataError

Float = NDArray[np.float32]
Corruption = Callable[[Float, int, np.random.Generator], Float]

SEVERITIES = (1, 2, 3, 4, 5)
LIBRARY_PREFIX = "imagecorruptions:"
"""What the names of the library `imagecorruptions` start with."""
SMALLEST_SIDE = 8
_GAMMA = 2.2


def corrupt(
    x: NDArray[np.uint8], name: str, *, severity: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Degrade frames the way a camera would.

    Args:
        x: frames, uint8 `[N, H, W, 3]`, at least 8 x 8; not changed.
        name: a key of `CORRUPTIONS`, or `"imagecorruptions:NAME"`.
        severity: 1 (slight) to 5 (severe); `"none"` ignores it.
        rng: where all randomness comes from; it is advanced.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ConfigurationError: unknown name, severity outside 1 to 5, or `jpeg` without Pillow.
        DataError: `x` is not uint8 `[N, H, W, 3]` with sides of at least 8.

    >>> grey = np.full((1, 8, 8, 3), 128, dtype=np.uint8)
    >>> int(corrupt(grey, "over_exposure", severity=1, rng=np.random.default_rng(0)).min())
    153
    """
    if name not in CORRUPTIONS and not name.startswith(LIBRARY_PREFIX):
        raise ConfigurationError(
            f"Unknown corruption `{name}`. Known corruptions: {', '.join(CORRUPTIONS)}."
        )
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ConfigurationError(f"`severity` must be a whole number from 1 to 5, got {severity}.")
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3:
        raise DataError(
            f"Frames must be uint8 [N, H, W, 3], got {x.dtype} {list(x.shape)}. "
            "Convert to 8-bit RGB first."
        )
    if min(x.shape[1:3]) < SMALLEST_SIDE:
        raise DataError(
            f"Frames must be at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, "
            f"got {x.shape[1]} x {x.shape[2]}. Resize them first."
        )
    if name == "none" or not len(x):
        return x.copy()
    if name.startswith(LIBRARY_PREFIX):
        # Imported here: it needs a library that few have.
        from streamadapt.replay.library_corruptions import corrupt_with_library

        return corrupt_with_library(
            x, name.removeprefix(LIBRARY_PREFIX), severity=severity, rng=rng
        )
    return _to_uint8(CORRUPTIONS[name](x.astype(np.float32) / np.float32(255), severity, rng))


def none(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """The frame as it is."""
    return x


def gaussian_noise(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """Sensor noise of the same strength everywhere."""
    sigma = _at(severity, 0.04, 0.08, 0.12, 0.18, 0.26)
    return x + sigma * rng.standard_normal(x.shape, dtype=np.float32)


def shot_noise(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """Photon noise: Poisson, strongest where the image is bright."""
    photons = _at(severity, 60, 25, 12, 6, 3)
    return rng.poisson(x * photons).astype(np.float32) / photons


def defocus_blur(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """A lens out of focus: convolution with a disc."""
    share = _at(severity, 0.015, 0.025, 0.035, 0.05, 0.07)
    radius = 0.5 + share * min(x.shape[1:3])  # below half a pixel a disc is a point
    axis = _axis(ceil(radius + 0.5))
    disc = np.clip(radius + 0.5 - np.hypot(axis[:, None], axis[None, :]), 0, 1)
    return _convolve(x, disc[None])


def motion_blur(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """Movement during the exposure: convolution with a line, in a direction drawn per frame."""
    half = _at(severity, 0.04, 0.07, 0.1, 0.14, 0.2) * min(x.shape[1:3]) / 2
    angle = np.float32(np.pi) * rng.random((len(x), 1, 1), dtype=np.float32)
    axis = _axis(ceil(half + 1))
    across = np.cos(angle) * axis[:, None] - np.sin(angle) * axis[None, :]
    along = np.sin(angle) * axis[:, None] + np.cos(angle) * axis[None, :]
    beyond = np.maximum(np.abs(along) - half, 0)
    return _convolve(x, np.clip(1 - np.hypot(beyond, across), 0, None))


def fog(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """Drifting fog: `x t + airlight (1 - t)` with transmission `t = exp(-density)`.

    The density is fractal noise between half and one and a half times its strength.
    """
    strength = _at(severity, 0.35, 0.6, 0.9, 1.3, 1.9)
    density = strength * (0.5 + fractal_noise(*x.shape[:3], rng=rng))
    transmission = np.exp(-density)[..., None]
    airlight = np.asarray([0.82, 0.84, 0.87], dtype=np.float32)
    foggy: Float = airlight + (x - airlight) * transmission
    return foggy


def low_light(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """Night: few photons and read noise, in linear light; gain makes up for part of the loss."""
    electrons = _at(severity, 400, 160, 70, 30, 12)  # that a white pixel collects
    brightness = _at(severity, 0.45, 0.3, 0.2, 0.13, 0.08)  # of white, in linear light
    read_noise = np.float32(1.5)  # electrons
    read = rng.standard_normal(x.shape, dtype=np.float32)
    signal = rng.poisson(x**_GAMMA * electrons).astype(np.float32) + read_noise * read
    return _display(signal * (brightness / electrons))


def over_exposure(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """Too long an exposure, in linear light: highlights clip, stray light lifts the blacks."""
    gain = 2 ** _at(severity, 0.5, 1, 1.5, 2.2, 3)  # stops
    stray = np.float32(0.01)
    return _display((x**_GAMMA + stray) * gain)


def contrast(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """Flat light: every pixel moves towards the mean of its frame."""
    keep = _at(severity, 0.6, 0.45, 0.3, 0.2, 0.1)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    flat: Float = mean + keep * (x - mean)
    return flat


def jpeg(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """Strong compression by a real JPEG encoder (Pillow, the extra `streamadapt[replay]`)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigurationError(
            "The corruption `jpeg` needs Pillow, which is not installed. "
            "Install it with `pip install streamadapt[replay]`."
        ) from error
    quality = int(_at(severity, 40, 25, 15, 9, 5))
    out = np.empty(x.shape, dtype=np.uint8)
    for index, frame in enumerate(_to_uint8(x)):  # the encoder takes one image at a time
        packed = io.BytesIO()
        Image.fromarray(frame).save(packed, "JPEG", quality=quality)
        out[index] = np.asarray(Image.open(packed))
    return out.astype(np.float32) / np.float32(255)


def pixelate(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """Too few pixels: averaged onto a coarser grid and blown up again without smoothing."""
    share = _at(severity, 0.75, 0.6, 0.5, 0.37, 0.25)
    _, height, width, _ = x.shape
    rows, columns = round(height * share), round(width * share)
    small = _box_average(_box_average(x, rows, axis=1), columns, axis=2)
    return small[:, np.arange(height) * rows // height][:, :, np.arange(width) * columns // width]


def colour_cast(x: Float, severity: int, rng: np.random.Generator) -> Float:
    """A white balance that is off: light of a colour drawn per frame, as bright on the whole."""
    strength = _at(severity, 0.2, 0.35, 0.5, 0.7, 0.9)
    angle = 2 * np.float32(np.pi) * rng.random((len(x), 1, 1, 1), dtype=np.float32)
    third = np.float32(2 * np.pi / 3) * np.arange(3, dtype=np.float32)
    return _display(x ** np.float32(_GAMMA) * (1 + strength * np.cos(angle + third)))


CORRUPTIONS: dict[str, Corruption] = {
    "none": none,
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "defocus_blur": defocus_blur,
    "motion_blur": motion_blur,
    "fog": fog,
    "low_light": low_light,
    "over_exposure": over_exposure,
    "contrast": contrast,
    "jpeg": jpeg,
    "pixelate": pixelate,
    "colour_cast": colour_cast,
}


DESIGN_CORRUPTIONS = (
    "gaussian_noise",
    "defocus_blur",
    "fog",
    "low_light",
    "contrast",
    "jpeg",
)
"""What settings and rules may be chosen on."""

SCORED_ONLY_CORRUPTIONS = ("shot_noise", "motion_blur", "over_exposure", "pixelate", "colour_cast")
"""What is only scored, as all of `imagecorruptions` is: nothing was ever chosen on it."""


def fractal_noise(frames: int, height: int, width: int, *, rng: np.random.Generator) -> Float:
    """Clouds: octaves of smooth value noise, each twice as fine and half as strong.

    Returns:
        `[frames, height, width]`; every frame spans 0 to 1.
    """
    field = np.zeros((frames, height, width), dtype=np.float32)
    cells, amplitude = 2, np.float32(1)
    while cells <= min(height, width, 128) // 2:
        grid = rng.random((frames, cells + 1, cells + 1), dtype=np.float32)
        field += amplitude * _stretch(_stretch(grid, height, axis=1), width, axis=2)
        cells, amplitude = cells * 2, amplitude / 2
    field -= field.min(axis=(1, 2), keepdims=True)
    field /= field.max(axis=(1, 2), keepdims=True)
    return field


def _at(severity: int, *levels: float) -> np.float32:
    return np.float32(levels[severity - 1])


def _axis(reach: int) -> Float:
    return np.arange(-reach, reach + 1, dtype=np.float32)


def _to_uint8(x: Float) -> NDArray[np.uint8]:
    return (np.clip(x, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _display(linear: Float) -> Float:
    return np.clip(linear, 0, 1) ** np.float32(1 / _GAMMA)


def _convolve(x: Float, kernels: Float) -> Float:
    """Convolve `[N, H, W, C]` with `[N or 1, K, K]` kernels, the image mirrored at its edges.

    By FFT: the cost does not grow with the kernel, and every frame may have its own.
    """
    _, height, width, _ = x.shape
    reach = kernels.shape[-1] // 2
    planes = np.moveaxis(x, 3, 1)  # [N, C, H, W]: the transform runs over contiguous rows
    padded = np.pad(planes, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    size = padded.shape[2:]
    kernels = kernels / kernels.sum(axis=(1, 2), keepdims=True)
    spectrum = np.fft.rfft2(padded)
    spectrum *= np.fft.rfft2(kernels, s=size)[:, None]
    blurred = np.fft.irfft2(spectrum, s=size)[:, :, 2 * reach :, 2 * reach :]
    assert blurred.shape[2:] == (height, width)
    return np.ascontiguousarray(np.moveaxis(blurred, 1, 3), dtype=np.float32)


def _stretch(grid: Float, size: int, *, axis: int) -> Float:
    """Interpolate `grid` along `axis` to `size` points, with zero slope at the grid points."""
    cells = grid.shape[axis] - 1
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    left = np.minimum(place.astype(np.intp), cells - 1)
    step = place - left
    step = step * step * (3 - 2 * step)
    step = step.reshape([-1 if dimension == axis else 1 for dimension in range(grid.ndim)])
    start = grid.take(left, axis=axis)
    stretched: Float = start + step * (grid.take(left + 1, axis=axis) - start)
    return stretched


def _box_average(x: Float, size: int, *, axis: int) -> Float:
    """Average over the pixels of each of `size` blocks along `axis`; blocks differ by one pixel."""
    length = x.shape[axis]
    edges = -(-np.arange(size) * length // size)  # first pixel whose index * size // length is k
    counts = np.diff(np.append(edges, length)).astype(np.float32)
    counts = counts.reshape([-1 if dimension == axis else 1 for dimension in range(x.ndim)])
    sums: Float = np.add.reduceat(x, edges, axis=axis)
    sums /= counts
    return sums
