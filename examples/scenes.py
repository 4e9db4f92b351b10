"""Scenes that a script draws, with the mask and the boxes that it drew: what both examples look at.

A scene is a textured ground with one to four shaded shapes, later ones over earlier ones, under a
light of one direction, with a little sensor noise. Colours, shading and sizes of the three kinds of
shape come from the same distributions (areas are drawn, not widths): only the outline tells them
apart. Labels are what was drawn: the mask says whose outline a pixel's centre is in, and a box
holds what is visible of its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamadapt.replay.corruptions import corrupt, fractal_noise

CLASSES = ("ground", "disc", "rectangle", "triangle")
SIZE = 64
MOST_SHAPES = 4
WORLDS = (
    ("none", 1),
    ("fog", 4),
    ("low_light", 4),
    ("gaussian_noise", 3),
    ("contrast", 4),
    ("colour_cast", 4),
    ("over_exposure", 4),
    ("defocus_blur", 3),
)
"""Degradations and severities of eight cameras."""

SEED = 20261128
"""Of the cameras; training has other seeds, and so other scenes."""

_AREAS = (0.03, 0.12)  # of the picture
_LEAST_VISIBLE = 0.35  # of a shape's area; what is hidden further is not drawn at all
_LEAST_CONTRAST = 0.2  # between a shape's colour and what it lies on, mean over RGB
_NOISE = 0.015

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Scenes:
    """Pictures and what is in them.

    Attributes:
        pictures: uint8 `[N, 64, 64, 3]`.
        masks: classes of pixels, int64 `[N, 64, 64]`; 0 is the ground.
        boxes: of visible shapes, left, top, right, bottom in pixels, one `[n, 4]` a picture.
        labels: their classes, from 1, one `[n]` a picture.
        grounds: the pictures as they are without shapes, noise included.
        outlines: of every shape drawn, in drawing order: class, centre x and y, area, angle, and
            the aspect of rectangles, one `[n, 6]` a picture.
    """

    pictures: NDArray[np.uint8]
    masks: NDArray[np.int64]
    boxes: list[Float]
    labels: list[NDArray[np.int64]]
    grounds: NDArray[np.uint8]
    outlines: list[Float]

    def __len__(self) -> int:
        return len(self.pictures)

    def __repr__(self) -> str:
        return f"Scenes({len(self)} of {SIZE}×{SIZE}, {sum(map(len, self.labels))} shapes)"


def scenes(count: int, *, seed: int) -> Scenes:
    """Draw scenes; one seed gives one set.

    >>> scenes(2, seed=0)
    Scenes(2 of 64×64, 6 shapes)
    """
    rng = np.random.default_rng(seed)
    light = _unit(rng.uniform(0, 2 * np.pi, count))
    ground = _ground(count, light, rng)
    canvas, owner = ground.copy(), np.zeros((count, SIZE, SIZE), np.int64)
    wanted = rng.integers(1, MOST_SHAPES + 1, count)
    drawn: list[list[tuple[float, ...]]] = [[] for _ in range(count)]
    for slot in range(MOST_SHAPES):
        kinds = rng.integers(1, len(CLASSES), count)
        areas = rng.uniform(*_AREAS, count) * SIZE**2
        angles, aspects = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.5, 1, count)
        distance, margin = outline(kinds, areas, angles, aspects)
        centres = margin[:, None] + rng.random((count, 2)) * (SIZE - 2 * margin[:, None])
        inside = distance(centres)
        paint = _paint(canvas, inside, light, rng)
        for index in np.flatnonzero(slot < wanted):
            taken = inside[index] < 0
            hidden = [
                (owner[index][~taken] == k + 1).sum() < _LEAST_VISIBLE * one[3]
                for k, one in enumerate(drawn[index])
            ]
            if any(hidden):
                continue
            values = (kinds, *centres.T, areas, angles, aspects)
            drawn[index].append(tuple(float(one[index]) for one in values))
            owner[index][taken] = len(drawn[index])
            cover = np.clip(0.5 - inside[index], 0, 1)[..., None]
            canvas[index] += cover * (paint[index] - canvas[index])
    noise = _NOISE * rng.standard_normal(canvas.shape, dtype=np.float32)
    return _labelled(_to_uint8(canvas + noise), _to_uint8(ground + noise), owner, drawn)


def outline(kinds, areas, angles, aspects):
    """Signed distances from outlines, negative inside, and the largest reach from the centre.

    Args:
        kinds: classes `[N]`, from 1.
        areas: square pixels `[N]`.
        angles: of the normal of a side, radians `[N]`.
        aspects: of rectangles, shorter over longer side `[N]`.

    Returns:
        A function from centres `[N, 2]` to distances of pixel centres `[N, 64, 64]`, in pixels, and
        the reach `[N]`. Beyond a corner the distance is that of the nearest side's line.
    """
    sides = np.array([0, 0, 4, 3])[kinds]
    stretch = np.sqrt(aspects)
    disc = np.sqrt(areas / np.pi)
    inner = {4: np.sqrt(areas) / 2, 3: np.sqrt(areas / (3 * np.sqrt(3)))}  # to the middle of a side
    reach = np.where(sides == 4, np.hypot(stretch, 1 / stretch) * inner[4], 2 * inner[3])
    reach = np.where(sides == 0, disc, reach)

    def distances(centres):
        axis = np.arange(SIZE) + 0.5
        x = axis[None, None, :] - centres[:, 0, None, None]
        y = axis[None, :, None] - centres[:, 1, None, None]
        found = np.hypot(x, y) - disc[:, None, None]
        for count, half in inner.items():
            each = np.full_like(found, -np.inf)
            for k in range(count):
                turn = angles + 2 * np.pi * k / count
                own = half * (stretch if k % 2 else 1 / stretch) if count == 4 else half
                along = x * np.cos(turn)[:, None, None] + y * np.sin(turn)[:, None, None]
                each = np.maximum(each, along - own[:, None, None])
            found = np.where((sides == count)[:, None, None], each, found)
        return found.astype(np.float32)

    return distances, reach + 1


def cameras(
    frames: int, *, worlds: Sequence[tuple[str, int]] = WORLDS, seed: int = SEED
) -> tuple[NDArray[np.uint8], list[Scenes]]:
    """Cameras that each show scenes of their own through a world of its own.

    Returns:
        Pictures `[cameras, frames, 64, 64, 3]`, and what was drawn for each camera.
    """
    shown, drawn = [], []
    for k, (world, severity) in enumerate(worlds):
        rng = np.random.default_rng((seed, k))
        drawn.append(scenes(frames, seed=int(rng.integers(2**32))))
        shown.append(corrupt(drawn[-1].pictures, world, severity=severity, rng=rng))
    return np.stack(shown), drawn


def _unit(angles) -> Float:
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def _ramp(light: Float) -> Float:
    """From -1 to 1 along the light, `[N, 64, 64, 1]`."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    x, y = axis[None, None, :], axis[None, :, None]
    ramp = light[:, 0, None, None] * x + light[:, 1, None, None] * y
    return (ramp / np.float32(np.sqrt(2)))[..., None]


def _ground(count: int, light: Float, rng: np.random.Generator) -> Float:
    """Two colours that a texture mixes, lit from one side."""
    first, second = rng.uniform(0.15, 0.85, (2, count, 1, 1, 3)).astype(np.float32)
    second = first + np.float32(0.35) * (second - first)
    texture = fractal_noise(count, SIZE, SIZE, rng=rng)[..., None]
    lit = 1 + rng.uniform(0, 0.3, (count, 1, 1, 1)).astype(np.float32) * _ramp(light)
    return np.clip((first + texture * (second - first)) * lit, 0, 1)


def _paint(canvas: Float, inside: Float, light: Float, rng: np.random.Generator) -> Float:
    """A shaded colour for each picture's next shape that stands out from what it lies on."""
    count = len(canvas)
    covered = (inside < 0)[..., None]
    under = (canvas * covered).sum((1, 2)) / covered.sum((1, 2))
    tries = rng.random((16, count, 3)).astype(np.float32)
    apart = np.abs(tries - under).mean(2)
    colour = tries[(apart >= _LEAST_CONTRAST).argmax(0), np.arange(count)][:, None, None]
    texture = fractal_noise(count, SIZE, SIZE, rng=rng)[..., None] - np.float32(0.5)
    strength, shade = rng.uniform(0, 0.3, (2, count, 1, 1, 1)).astype(np.float32)
    lit = 1 + 2 * shade * _ramp(light) + strength * texture
    return np.clip(colour * lit, 0, 1)


def _to_uint8(x: Float) -> NDArray[np.uint8]:
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)


def _labelled(pictures, grounds, owner, drawn) -> Scenes:
    masks = np.zeros_like(owner)
    boxes, labels = [], []
    for index, shapes in enumerate(drawn):
        classes = np.array([0, *(one[0] for one in shapes)], np.int64)
        masks[index] = classes[owner[index]]
        own = []
        for k in range(1, len(classes)):
            rows, columns = np.nonzero(owner[index] == k)
            own.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        boxes.append(np.array(own, np.float32).reshape(-1, 4))
        labels.append(classes[1:])
    outlines = [np.array(one, np.float32).reshape(-1, 6) for one in drawn]
    return Scenes(pictures, masks, boxes, labels, grounds, outlines)
