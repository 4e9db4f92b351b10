"""The stream of a scenario: which frames come, in which order, and how the camera spoils them.

Frames are corrupted in groups of 64 counted from the start of their visit, each group by draws of
its own place. So a frame is the same to the bit whatever the batch size, the other domains, and
however often it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.corruptions import SMALLEST_SIDE, corrupt
from streamadapt.replay.data import LabelledData
from streamadapt.replay.orders import class_correlated_order as class_correlated_order
from streamadapt.replay.published import is_video, load_images
from streamadapt.replay.scenario import Domain, Scenario
from streamadapt.replay.schedule import CORRUPTION, Pool, make_schedule, place_rng
from streamadapt.replay.spans import DomainSpan as DomainSpan
from streamadapt.replay.split import Split

GROUP_FRAMES = 64  # corrupted together; part of what a seed means, so never a parameter
_CALIBRATION_BATCH = 64


@dataclass(frozen=True, repr=False)
class Batch:
    """Neighbouring frames.

    Attributes:
        frames: uint8 `[B, H, W, 3]`, corrupted.
        labels: int64 `[B]`; -1 where it is not known.
        domains: int64 `[B]`, places in `Stream.spans`.
        start_index: place of the first frame in the whole stream.
        ids: int64 `[B]`, which sample of its data each frame was made from.
        streams: the camera of each frame; None where there is only one.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    start_index: int
    ids: NDArray[np.int64]
    streams: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return (
            f"Batch(frames=uint8 {list(self.frames.shape)}, "
            f"domains={np.unique(self.domains).tolist()}, start_index={self.start_index})"
        )


class Stream:
    """Batches of a scenario, made on the way; may be iterated again and gives the same bits.

    A domain draws its samples without replacement; one that asks for more than there are goes
    through the data again in another order. In the arrangement `sequential` a batch never spans two
    domains, but for the frames of a slow transition.

    Args:
        scenario: domains, order, seed and batch size.
        data: images already at their final size; None where every domain has its own.

    Attributes:
        spans: visits of domains, in the order of the stream.
        starts: numbers of the batches at which a visit begins; only 0 where they overlap.

    Raises:
        DataError: images too small to be corrupted or of several sizes, or a split of other data.
        ConfigurationError: no data.
    """

    def __init__(self, scenario: Scenario, *, data: LabelledData | None) -> None:
        self.scenario = scenario
        self._split = None
        if data is not None and scenario.split is not None:
            self._split = Split.load(_path(scenario, scenario.split))
            self._split.check(data)
        self._calibration_data = data
        self._data = [_data_of(domain, scenario, data) for domain in scenario.domains]
        self._check_sizes()
        self._schedule = make_schedule(scenario, [self._pool(k) for k in range(len(self._data))])
        self.spans = self._schedule.spans
        self.starts = self._schedule.starts

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._schedule.edges) - 1

    @property
    def frame_count(self) -> int:
        """Number of frames."""
        return len(self._schedule.frame_visits)

    def __iter__(self) -> Iterator[Batch]:
        plan = self._schedule
        sources = [_VisitFrames(self, number) for number in range(len(plan.visits))]
        keep = self.scenario.arrangement == "mixed"  # its frames are taken from anywhere
        for start, stop in zip(plan.edges[:-1], plan.edges[1:], strict=True):
            owners, places = plan.frame_visits[start:stop], plan.frame_places[start:stop]
            frames = np.empty((stop - start, *self._data[0].x.shape[1:]), dtype=np.uint8)
            ids = np.empty(stop - start, dtype=np.int64)
            labels = np.empty(stop - start, dtype=np.int64)
            for owner in np.unique(owners):
                mine = owners == owner
                visit = plan.visits[owner]
                frames[mine] = sources[owner].take(places[mine], keep=keep)
                ids[mine] = visit.ids[places[mine]]
                labels[mine] = self._data[visit.domain].y[ids[mine]]
            cameras = None
            if self.scenario.arrangement == "cameras":
                cameras = tuple(self.spans[owner].name for owner in owners)
            yield Batch(frames, labels, owners, int(start), ids, cameras)

    def frames_of(self, number: int) -> Iterator[NDArray[np.uint8]]:
        """All frames of one visit in its order, at most a batch at a time."""
        source, count = _VisitFrames(self, number), len(self._schedule.visits[number].ids)
        for start in range(0, count, self.scenario.batch_size):
            stop = min(start + self.scenario.batch_size, count)
            yield source.take(np.arange(start, stop), keep=False)

    def calibration(self) -> Iterator[NDArray[np.uint8]]:
        """Clean images of the part set aside for calibration; none without a split."""
        if self._split is None or self._calibration_data is None:
            return
        chosen = self._split.calibrate
        for start in range(0, len(chosen), _CALIBRATION_BATCH):
            yield self._calibration_data.x[chosen[start : start + _CALIBRATION_BATCH]]

    def corrupted_group(self, number: int, group: int) -> NDArray[np.uint8]:
        """The `group`-th 64 frames of a visit."""
        visit = self._schedule.visits[number]
        rows = slice(group * GROUP_FRAMES, (group + 1) * GROUP_FRAMES)
        clean = self._data[visit.domain].x[visit.ids[rows]]
        domain = self.scenario.domains[visit.domain]
        if domain.images is not None:
            return clean
        severity = visit.severity[rows]
        place = [visit.domain, CORRUPTION, group, *([visit.number] if visit.number else [])]
        out = np.empty_like(clean)
        # Draws do not depend on the severity: where it changes, the pattern goes on.
        for level in np.unique(severity):
            rng = place_rng(self.scenario.seed, *place)
            spoilt = corrupt(clean, domain.corruption, severity=max(int(level), 1), rng=rng)
            out[severity == level] = spoilt[severity == level]
        return out

    def _pool(self, index: int) -> Pool:
        data, domain = self._data[index], self.scenario.domains[index]
        if domain.images is not None:
            in_order = is_video(Path(domain.images))
            return Pool(np.arange(len(data)), data.y, in_order=in_order)
        if self._split is None:
            return Pool(np.arange(len(data)), data.y)
        return Pool(self._split.part(self.scenario.part), data.y)

    def _check_sizes(self) -> None:
        sizes = {data.x.shape[1:3] for data in self._data}
        if len(sizes) > 1:
            words = " and ".join(f"{height} x {width}" for height, width in sorted(sizes))
            raise DataError(
                f"The domains have images of {words} pixels. Set `resize` to bring all of them to "
                "one size."
            )
        height, width = next(iter(sizes))
        if min(height, width) < SMALLEST_SIDE:
            raise DataError(
                f"The images have {height} x {width} pixels, at least {SMALLEST_SIDE} x "
                f"{SMALLEST_SIDE} are needed. Set `resize`."
            )


class _VisitFrames:
    """Frames of one visit, a group at a time."""

    def __init__(self, stream: Stream, number: int) -> None:
        self._stream, self._number = stream, number
        self._groups: dict[int, NDArray[np.uint8]] = {}

    def take(self, places: NDArray[np.int64], *, keep: bool) -> NDArray[np.uint8]:
        """Frames at some places; what is not kept is made again when it is asked for again."""
        groups = places // GROUP_FRAMES
        needed = np.unique(groups)
        if not keep:
            self._groups = {g: frames for g, frames in self._groups.items() if g in needed}
        for group in needed:
            if group not in self._groups:
                self._groups[int(group)] = self._stream.corrupted_group(self._number, int(group))
        rows = [self._groups[int(g)][p] for g, p in zip(groups, places % GROUP_FRAMES, strict=True)]
        return np.stack(rows)


def _data_of(domain: Domain, scenario: Scenario, data: LabelledData | None) -> LabelledData:
    if domain.images is not None:
        severity = domain.severity if isinstance(domain.severity, int) else domain.severity[0]
        labels = None if domain.labels is None else scenario.base / domain.labels
        try:
            return load_images(
                scenario.base / domain.images,
                severity=severity,
                labels=labels,
                resize=scenario.resize,
            )
        except DataError as error:
            raise DataError(f"domain `{domain.name}`: {error}") from error
    if data is None:
        raise ConfigurationError(
            f"domain `{domain.name}` has no images of its own, and the scenario names no data. Add "
            "`data = ...` to it."
        )
    return data


def _path(scenario: Scenario, name: str) -> str | Path:
    return name if name.startswith("builtin:") else scenario.base / name
