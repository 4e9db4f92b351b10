"""Runs a scenario: every policy answers the very same frames, and everything is written down."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from streamadapt.errors import ConfigurationError, ModelStateError
from streamadapt.replay import fingerprint
from streamadapt.replay.data import LabelledData, load_data, resize_frames
from streamadapt.replay.models import load_model as load_model
from streamadapt.replay.policies import Policy, build_policy
from streamadapt.replay.recording import Recording, open_recording, record
from streamadapt.replay.result import ReplayResult
from streamadapt.replay.rundir import RunDirectory
from streamadapt.replay.scenario import PolicySpec, Scenario
from streamadapt.replay.stream import Stream
from streamadapt.replay.timing import DEFAULT_COSTS, cost_keys, cost_of, load_costs
from streamadapt.replay.unit import Conditions
from streamadapt.replay.work import Entry, Work
from streamadapt.replay.work import Progress as Progress

_MOST_BYTES_IN_MEMORY = 1 << 30


def run(
    scenario: Scenario,
    *,
    model: nn.Module | None = None,
    data: LabelledData | None = None,
    policies: Sequence[Policy] | None = None,
    progress: Progress | None = None,
    run_dir: str | Path | None = None,
    jobs: int = 1,
) -> ReplayResult:
    """Replay a scenario and measure every policy on it.

    The frames are made once. Then each policy goes over all of them with a copy of the model, under
    `torch.no_grad` and on one thread, one policy after the other or several at a time: the result
    is the same. The model itself is not changed.

    Args:
        scenario: what to replay.
        model: instead of `scenario.model`; maps normalised `[B, 3, H, W]` to scores `[B, classes]`.
        data: instead of `scenario.data`; resized as the scenario says.
        policies: instead of `scenario.policies`.
        progress: called after each batch with batches done, batches in all (of all policies), and
            what is going on.
        run_dir: folder that keeps frames, finished policies and the result. A run that was killed
            goes on there, one that has finished is only read, as long as scenario, data, model and
            versions are the same.
        jobs: 1 runs in this process, more in so many processes, each of which holds a model. What
            they cannot import (a class defined inside a function, say) runs in this one.

    Raises:
        ConfigurationError: no model or no data; a model that does not load or gives no scores; a
            run directory that is in use.
        ModelStateError: the model is in training mode.
        DataError: data that cannot be used, or a folder that cannot be written in.
        StreamAdaptError: a worker process died.
    """
    started = time.perf_counter()
    if jobs < 1:
        raise ConfigurationError(f"`jobs` must be at least 1, got {jobs}.")
    conditions = _conditions(scenario)
    costs = _Costs(scenario)
    chosen: Sequence[PolicySpec | Policy] = scenario.policies if policies is None else policies
    entries = [Entry(policy.name, policy, costs(policy)) for policy in chosen]
    _check(entries, scenario)
    if model is None:
        model = load_model(_given(scenario.model, "model"))
    if model.training:
        raise ModelStateError(
            f"{type(model).__name__} is in training mode. Replay what you deploy: call .eval() "
            "on it, in the factory."
        )
    data = _data(scenario, data)
    images = fingerprint.images_sha256(data)
    stream_key = fingerprint.stream_key(scenario, data, images=images)
    with ExitStack() as stack:
        directory = None
        if run_dir is not None:
            directory = RunDirectory(Path(run_dir))
            stack.enter_context(directory.locked())
        stream = Stream(scenario, data=data)
        folder = directory.path if directory is not None else _folder(stream, data, jobs, stack)
        recording = _recording(stream, folder, stream_key, progress)
        work = Work(entries, model, recording, conditions=conditions, progress=progress)
        description = {
            "name": scenario.name,
            "configuration_hash": scenario.configuration_hash,
            "scenario": scenario.to_dict(),
            "data": fingerprint.describe_data(data, recording, images=images),
            "model": fingerprint.describe_model(model),
            "versions": fingerprint.versions(scenario),
        }
        if directory is not None:
            finished = work.resume(directory, description, stream_key=stream_key)
            if finished is not None:
                return finished
        if jobs > 1 and folder is not None:
            work.run_in_workers(folder, stream_key, model_name=scenario.model, jobs=jobs)
        work.run_here()
        result = work.result(description, time.perf_counter() - started)
        if directory is not None:
            directory.keep_result(result)
    return result


class _Costs:
    """What each policy costs in a time-constrained scenario; 1, unread, in others."""

    def __init__(self, scenario: Scenario) -> None:
        self._path: Path | None = None
        if scenario.time is not None:
            given = scenario.time.costs
            self._path = DEFAULT_COSTS if given is None else scenario.base / given
            self._costs = load_costs(self._path)

    def __call__(self, policy: PolicySpec | Policy) -> float:
        if self._path is None:
            return 1.0
        keys = cost_keys(policy) if isinstance(policy, PolicySpec) else [policy.name]
        return cost_of(keys, costs=self._costs, path=self._path)


def _conditions(scenario: Scenario) -> Conditions:
    return Conditions(
        mean=scenario.mean,
        std=scenario.std,
        batch_size=scenario.batch_size,
        frames_per_second=scenario.frames_per_second,
        seed=scenario.seed,
        episodic=scenario.episodic,
        relative_rate=None if scenario.time is None else scenario.time.relative_rate,
    )


def _check(entries: Sequence[Entry], scenario: Scenario) -> None:
    """Before anything is loaded: names, and what a scenario says of its policies."""
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"Policies need names of their own, got {names}.")
    for entry in entries:
        if isinstance(entry.policy, PolicySpec):
            build_policy(entry.policy, frames_per_second=scenario.frames_per_second)


def _data(scenario: Scenario, data: LabelledData | None) -> LabelledData | None:
    """Images at their final size; None where every domain brings its own."""
    if data is not None:
        if scenario.resize is None:
            return data
        return LabelledData(resize_frames(data.x, scenario.resize), data.y, data.names)
    source = scenario.data_source
    if source is None and all(domain.images is not None for domain in scenario.domains):
        return None
    return load_data(_given(source, "data"), resize=scenario.resize)


def _recording(
    stream: Stream, folder: Path | None, key: str, progress: Progress | None
) -> Recording:
    kept = None if folder is None else open_recording(folder, key=key)
    if kept is not None:
        return kept

    def say(words: str) -> None:
        if progress is not None:
            progress(0, 1, words)  # nothing to count yet

    return record(stream, folder=folder, key=key, progress=say)


def _folder(stream: Stream, data: LabelledData | None, jobs: int, stack: ExitStack) -> Path | None:
    """Where frames go that nobody wants to keep; None for the memory."""
    image_bytes = None if data is None else int(np.prod(data.x.shape[1:]))
    small = image_bytes and image_bytes * stream.frame_count <= _MOST_BYTES_IN_MEMORY
    if small and jobs == 1:
        return None
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamadapt-replay-")))


def _given(value: Any, what: str) -> Any:
    if value is None:
        raise ConfigurationError(
            f"The scenario names no {what}. Add `{what} = ...` to it, or give --{what}."
        )
    return value
