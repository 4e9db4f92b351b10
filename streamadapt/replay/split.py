"""Which images are for calibrating, for tuning and for testing: drawn once, and committed.

A split is a JSON file: `data` with the number of samples and the SHA-256 of their labels (which
stay the same when images are resized), and under `calibrate`, `tune` and `test` the sample numbers,
which do not overlap. The file `streamadapt/replay/assets/digits_split.json`, which
`"builtin:digits"` names, is
`Split.make(load_data("builtin:digits"), calibrate=0.2, tune=0.3, seed=0)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.data import BUILTIN_DIGITS, LabelledData
from streamadapt.replay.scenario import PARTS

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Three disjoint parts of one data set.

    Attributes:
        calibrate: int64 `[A]`, samples that a policy may see, clean, before the stream.
        tune: int64 `[B]`, samples that settings are chosen on.
        test: int64 `[C]`, samples that results are from.
        samples: number of samples in the data.
        labels_sha256: of all labels as little-endian 64-bit integers.
    """

    calibrate: Indices
    tune: Indices
    test: Indices
    samples: int
    labels_sha256: str

    def __post_init__(self) -> None:
        everything = np.concatenate([self.part(name) for name in PARTS])
        if len(np.unique(everything)) < len(everything):
            raise DataError("A split must not hold a sample twice.")
        if len(everything) and not 0 <= everything.min() <= everything.max() < self.samples:
            raise DataError(f"A split of {self.samples} samples names others.")

    @classmethod
    def make(cls, data: LabelledData, *, calibrate: float, tune: float, seed: int) -> Split:
        """Draw a split, class by class; a class with one image goes to one part as a whole.

        Args:
            data: what to split.
            calibrate: share of the samples, 0 to 1.
            tune: share of the samples, 0 to 1; the rest is for testing.
            seed: not negative.
        """
        if not (calibrate >= 0 and tune >= 0 and calibrate + tune < 1):
            raise ConfigurationError(
                f"`calibrate` and `tune` must not be negative and leave something to test on, got "
                f"{calibrate} and {tune}."
            )
        rng = np.random.default_rng(seed)
        # Each class's samples are spread evenly over 0 to 1, from a random offset: shares hold
        # class by class where there are many, and over all classes where there are few.
        rank = np.empty(len(data))
        for label in np.unique(data.y):
            members = rng.permutation(np.flatnonzero(data.y == label))
            rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
        parts = np.digitize(rank, [calibrate, calibrate + tune])
        first, second, third = (np.flatnonzero(parts == number) for number in range(3))
        return cls(first, second, third, samples=len(data), labels_sha256=_digest(data))

    @classmethod
    def load(cls, source: str | Path) -> Split:
        """Read a split; `"builtin:digits"` is the one of the package's digits.

        Raises:
            DataError: not readable, or not a split.
        """
        if str(source) == BUILTIN_DIGITS:
            packaged = resources.files("streamadapt.replay").joinpath("assets/digits_split.json")
            text = packaged.read_text(encoding="utf-8")
        else:
            try:
                text = Path(source).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{source}: the split cannot be read ({error}).") from error
        try:
            content: Mapping[str, Any] = json.loads(text)
            about = content["data"]
            first, second, third = (np.asarray(content[part], dtype=np.int64) for part in PARTS)
            return cls(
                first,
                second,
                third,
                samples=int(about["samples"]),
                labels_sha256=str(about["labels_sha256"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{source}: not a split ({type(error).__name__}: {error}). It is a JSON file with "
                "`data`, `calibrate`, `tune` and `test`; `Split.save` writes one."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the split."""
        content = {
            "data": {"samples": self.samples, "labels_sha256": self.labels_sha256},
            "calibrate": self.calibrate.tolist(),
            "tune": self.tune.tolist(),
            "test": self.test.tolist(),
        }
        Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def part(self, name: str) -> Indices:
        """The samples of one part."""
        found: Indices = getattr(self, name)
        return found

    def check(self, data: LabelledData) -> None:
        """Refuse data that the split was not made for (`DataError`)."""
        if len(data) != self.samples:
            raise DataError(
                f"The split is for {self.samples} samples, the data has {len(data)}. Use the data "
                "it was made for, or make another split."
            )
        if _digest(data) != self.labels_sha256:
            raise DataError(
                "The split was made for other data: the labels differ. Use the data it was made "
                "for, or make another split."
            )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={len(self.part(name))}" for name in PARTS)
        return f"Split({sizes})"


def _digest(data: LabelledData) -> str:
    return hashlib.sha256(data.y.astype("<i8").tobytes()).hexdigest()
