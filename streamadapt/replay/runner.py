"""Runs a scenario: every policy answers the very same frames, and everything is written down."""

from __future__ import annotations

import copy
import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import streamadapt
from streamadapt.errors import ConfigurationError, DataError, ModelStateError, ScenarioError
from streamadapt.events import Event
from streamadapt.replay.data import LabelledData, load_data, resize_frames
from streamadapt.replay.models import load_model as load_model
from streamadapt.replay.policies import Policy, build_policy
from streamadapt.replay.result import DomainSpan, PolicySeries, ReplayEvent, ReplayResult
from streamadapt.replay.scenario import Scenario
from streamadapt.replay.scores import run_lengths
from streamadapt.replay.stream import Stream

Progress = Callable[[int, int, str], None]


def run(
    scenario: Scenario,
    *,
    model: nn.Module | None = None,
    data: LabelledData | None = None,
    policies: Sequence[Policy] | None = None,
    progress: Progress | None = None,
) -> ReplayResult:
    """Replay a scenario and measure every policy on it.

    Each batch is made once and given to all policies, each with a copy of the model, under
    `torch.inference_mode`. The model itself is not changed.

    Args:
        scenario: what to replay.
        model: instead of `scenario.model`; maps normalised `[B, 3, H, W]` to scores `[B, classes]`.
        data: instead of `scenario.data`; resized as the scenario says.
        policies: instead of `scenario.policies`.
        progress: called after each batch with batches done, batches in all, name of the domain.

    Raises:
        ConfigurationError: no model or no data; a model that does not load or gives no scores.
        ModelStateError: the model is in training mode.
        DataError: data that cannot be used.
    """
    started = time.perf_counter()
    if policies is None:
        rate = scenario.frames_per_second
        policies = [build_policy(spec, frames_per_second=rate) for spec in scenario.policies]
    names = [policy.name for policy in policies]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"Policies need names of their own, got {names}.")
    if model is None:
        model = load_model(_given(scenario.model, "model"))
    if model.training:
        raise ModelStateError(
            f"{type(model).__name__} is in training mode. Replay what you deploy: call .eval() "
            "on it, in the factory."
        )
    if data is None:
        data = load_data(_given(scenario.data_source, "data"), resize=scenario.resize)
    elif scenario.resize is not None:
        data = LabelledData(resize_frames(data.x, scenario.resize), data.y, data.names)
    stream = Stream(scenario, data=data)
    to_tensor = _Normalise(scenario, model)
    record = _Record(names)
    with ExitStack() as stack, torch.inference_mode():
        for policy in policies:
            stack.callback(policy.finish)
            _start(policy, copy.deepcopy(model))
        domain_index = -1
        for number, batch in enumerate(stream):
            if batch.domain_index != domain_index:
                domain_index = batch.domain_index
                for policy in policies:
                    if policy.oracle:
                        policy.domain_started(_DomainFrames(stream, domain_index, to_tensor))
            frames = to_tensor(batch.frames)
            for policy in policies:
                scores, seconds = _answer(policy, frames)
                record.answer(policy, number, _count_correct(scores, batch.labels), seconds)
            record.batch_frames.append(len(batch.labels))
            record.batch_domains.append(domain_index)
            if progress is not None:
                progress(number + 1, len(stream), scenario.domains[domain_index].name)
    return ReplayResult(
        name=scenario.name,
        configuration_hash=scenario.configuration_hash,
        scenario=scenario.to_dict(),
        data=_describe_data(data),
        model=_describe_model(model),
        versions=versions(),
        domains=_spans(scenario, stream),
        batch_frames=record.batch_frames,
        batch_domains=record.batch_domains,
        policies=[record.series(policy) for policy in policies],
        events=record.events,
        wall_seconds=time.perf_counter() - started,
    )


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "streamadapt": streamadapt.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


class _Normalise:
    """uint8 `[B, H, W, 3]` to `[B, 3, H, W]` as the model wants it: dtype, device, mean and std."""

    def __init__(self, scenario: Scenario, model: nn.Module) -> None:
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self._dtype, self._device = like.dtype, like.device
        self._mean = torch.tensor(scenario.mean).view(3, 1, 1)
        self._std = torch.tensor(scenario.std).view(3, 1, 1)

    def __call__(self, frames: NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, 3, 1)))
        return ((x.float() / 255 - self._mean) / self._std).to(self._device, self._dtype)


class _DomainFrames:
    """All batches of a domain, made when iterated; without labels."""

    def __init__(self, stream: Stream, index: int, to_tensor: _Normalise) -> None:
        self._stream, self._index, self._to_tensor = stream, index, to_tensor

    def __iter__(self) -> Iterator[Tensor]:
        return (self._to_tensor(batch.frames) for batch in self._stream.domain(self._index))


class _Record:
    def __init__(self, names: Sequence[str]) -> None:
        self.batch_frames: list[int] = []
        self.batch_domains: list[int] = []
        self.events: list[ReplayEvent] = []
        self._correct: dict[str, list[int]] = {name: [] for name in names}
        self._distance: dict[str, list[float | None]] = {name: [] for name in names}
        self._seconds: dict[str, list[float]] = {name: [] for name in names}

    def answer(self, policy: Policy, number: int, correct: int, seconds: float) -> None:
        self._correct[policy.name].append(correct)
        self._seconds[policy.name].append(seconds)
        self._distance[policy.name].append(policy.distance())
        for event in policy.events():
            self.events.append(
                ReplayEvent(number, policy.name, type(event).__name__, _plain_fields(event))
            )

    def series(self, policy: Policy) -> PolicySeries:
        name = policy.name
        return PolicySeries(
            name=name,
            description=policy.description,
            oracle=policy.oracle,
            correct=self._correct[name],
            distance=self._distance[name],
            latency_seconds=self._seconds[name],
        )


def _start(policy: Policy, model: nn.Module) -> None:
    try:
        policy.start(model)
    except ConfigurationError as error:
        raise ScenarioError(f"policy `{policy.name}`: {error}") from error


def _answer(policy: Policy, frames: Tensor) -> tuple[Tensor, float]:
    on_cuda = frames.device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(frames.device)
    started = time.perf_counter()
    scores = policy(frames)
    if on_cuda:
        torch.cuda.synchronize(frames.device)
    return scores, time.perf_counter() - started


def _count_correct(scores: object, labels: NDArray[np.int64]) -> int:
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(labels):
        shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ConfigurationError(
            f"The model must return class scores [{len(labels)}, classes], got {shape}. "
            "Name a factory that returns a classifier."
        )
    if int(labels.max()) >= scores.shape[1]:
        raise DataError(
            f"The data have the label {int(labels.max())}, the model knows the classes 0 to "
            f"{scores.shape[1] - 1}. They do not belong together."
        )
    return int((scores.argmax(dim=1).cpu().numpy() == labels).sum())


def _given(value: Any, what: str) -> Any:
    if value is None:
        raise ConfigurationError(
            f"The scenario names no {what}. Add `{what} = ...` to it, or give --{what}."
        )
    return value


def _spans(scenario: Scenario, stream: Stream) -> list[DomainSpan]:
    out: list[DomainSpan] = []
    first_frame = first_batch = 0
    for index, domain in enumerate(scenario.domains):
        batches = -(-domain.samples // scenario.batch_size)
        out.append(
            DomainSpan(
                name=domain.name,
                corruption=domain.corruption,
                severity=0 if domain.corruption == "none" else domain.severity,
                first_frame=first_frame,
                frames=domain.samples,
                first_batch=first_batch,
                batches=batches,
                mean_run_length=float(run_lengths(stream.labels(index)).mean()),
            )
        )
        first_frame, first_batch = first_frame + domain.samples, first_batch + batches
    return out


def _describe_data(data: LabelledData) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(data.x).data).hexdigest()
    _, height, width, _ = data.x.shape
    return {
        "samples": len(data),
        "height": height,
        "width": width,
        "classes": int(data.y.max()) + 1,
        "sha256": digest,
    }


def _describe_model(model: nn.Module) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return {"class": type(model).__name__, "sha256": digest.hexdigest()}


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
