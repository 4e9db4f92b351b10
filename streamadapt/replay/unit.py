"""One policy on all batches: what a replay is made of, and what is kept when it is interrupted."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamadapt.errors import ConfigurationError, ScenarioError
from streamadapt.events import Event
from streamadapt.replay.measure import Meter
from streamadapt.replay.one_thread import one_thread
from streamadapt.replay.policies import Policy
from streamadapt.replay.recording import Recording
from streamadapt.replay.result import PolicySeries, ReplayEvent
from streamadapt.replay.result_format import series_from_dict, series_to_dict
from streamadapt.replay.timing import adapts

CALIBRATION_BATCH_FRAMES = 64


@dataclass(frozen=True)
class Conditions:
    """What holds for every policy of a replay.

    Attributes:
        mean: per channel, taken from x/255.
        std: per channel, the divisor after that.
        batch_size: frames that an oracle is shown at a time.
        frames_per_second: of the camera clock.
        seed: of whatever a policy draws from PyTorch's generator.
        episodic: policies go back to the source where a domain starts.
        relative_rate: batches that arrive while the frozen model answers one; None waits for all.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    frames_per_second: float
    seed: int = 0
    episodic: bool = False
    relative_rate: float | None = None


@dataclass(frozen=True, eq=False)
class UnitResult:
    """What one policy did and reported."""

    series: PolicySeries
    events: Sequence[ReplayEvent]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what a clock measured is under `durations`."""
        return {
            **series_to_dict(self.series),
            "events": [asdict(event) for event in self.events],
            "durations": {"latency_seconds": list(self.series.latency_seconds)},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, frames: int) -> UnitResult:
        """What `to_dict` was called on, of a stream of so many frames."""
        latency = content["durations"]["latency_seconds"]
        return cls(
            series_from_dict(content, frames=frames, latency_seconds=latency),
            [ReplayEvent(**event) for event in content["events"]],
        )


def run_unit(
    policy: Policy,
    model: nn.Module,
    recording: Recording,
    *,
    conditions: Conditions,
    cost: float,
    progress: Callable[[int, str], None],
) -> UnitResult:
    """Show a recording to a policy, on one thread.

    Args:
        policy: answers; it gets a copy of the model.
        model: in evaluation mode.
        recording: the frames.
        conditions: how they are shown.
        cost: of the policy, in units of the frozen model; used with a relative rate.
        progress: called after each batch with batches done and the name of the domain.

    Raises:
        ScenarioError: the policy cannot run on this model.
        ConfigurationError: answers that are not scores.
        DataError: labels that the model does not know.
    """
    # A generator of its own for each policy: what one draws is not what another left over.
    with one_thread(), torch.no_grad(), torch.random.fork_rng(_cuda_devices(model)):
        torch.manual_seed(conditions.seed)
        try:
            meter, events = _replay(policy, model, recording, conditions, cost, progress)
        finally:
            policy.finish()
    series = meter.series(name=policy.name, description=policy.description, oracle=policy.oracle)
    return UnitResult(series, events)


def _replay(
    policy: Policy,
    model: nn.Module,
    recording: Recording,
    conditions: Conditions,
    cost: float,
    progress: Callable[[int, str], None],
) -> tuple[Meter, list[ReplayEvent]]:
    to_tensor = _Normalise(conditions, model)
    meter, events = Meter(len(recording)), list[ReplayEvent]()
    rate = conditions.relative_rate
    takes = None if rate is None else adapts(len(recording), cost=cost, relative_rate=rate)
    start_of = {batch: number for number, batch in enumerate(recording.starts)}
    _start(policy, model, recording, to_tensor)
    edges = recording.edges()
    for number in range(len(recording)):
        first, last = int(edges[number]), int(edges[number + 1])
        if number in start_of:
            if conditions.episodic and number:
                policy.reset()
            if policy.oracle:
                places = recording.ahead(start_of[number])
                policy.domain_started(_Ahead(recording, places, conditions.batch_size, to_tensor))
        adapted = takes is None or takes[number]
        scores, seconds = _answer(
            policy if adapted else policy.predict,
            to_tensor(recording.frames[first:last]),
            recording.streams(first, last),
        )
        meter.take(
            scores,
            recording.labels[first:last],
            seconds=seconds,
            adapted=adapted,
            distance=policy.distance() if meter.wants_distance() else None,
        )
        for event in policy.events():
            kind = type(event).__name__
            events.append(ReplayEvent(number, policy.name, kind, _plain_fields(event)))
        progress(number + 1, recording.spans[int(recording.domains[last - 1])].name)
    return meter, events


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})


class _Normalise:
    """uint8 `[B, H, W, 3]` to `[B, 3, H, W]` as the model wants it: dtype, device, mean and std."""

    def __init__(self, conditions: Conditions, model: nn.Module) -> None:
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self._dtype, self._device = like.dtype, like.device
        self._mean = torch.tensor(conditions.mean).view(3, 1, 1)
        self._std = torch.tensor(conditions.std).view(3, 1, 1)

    def __call__(self, frames: NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, 3, 1)))
        return ((x.float() / 255 - self._mean) / self._std).to(self._device, self._dtype)


class _Ahead:
    """Frames that an oracle may see before it answers them, in batches, without labels."""

    def __init__(
        self, recording: Recording, places: NDArray[np.int64], size: int, to_tensor: _Normalise
    ) -> None:
        self._recording, self._places, self._size = recording, places, size
        self._to_tensor = to_tensor

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, len(self._places), self._size):
            places = self._places[first : first + self._size]
            yield self._to_tensor(self._recording.frames[places])


def _start(policy: Policy, model: nn.Module, recording: Recording, to_tensor: _Normalise) -> None:
    shown, size = recording.calibration, CALIBRATION_BATCH_FRAMES
    calibration = [to_tensor(shown[at : at + size]) for at in range(0, len(shown), size)]
    try:
        policy.start(copy.deepcopy(model), calibration=calibration, cameras=recording.cameras)
    except ConfigurationError as error:
        raise ScenarioError(f"policy `{policy.name}`: {error}") from error


def _answer(
    answer: Callable[..., Tensor], frames: Tensor, streams: tuple[str, ...] | None
) -> tuple[Tensor, float]:
    on_cuda = frames.device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(frames.device)
    started = time.perf_counter()
    scores = answer(frames, streams=streams)
    if on_cuda:
        torch.cuda.synchronize(frames.device)
    return scores, time.perf_counter() - started


def _plain_fields(event: Event) -> dict[str, Any]:
    # Durations are measured, so they would differ between two runs of one seed.
    return {
        field.name: _plain(getattr(event, field.name))
        for field in fields(event)
        if not field.name.endswith("_seconds")
    }


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items
    return str(value)
