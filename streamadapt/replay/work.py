"""The policies of a run: what is done of them, and getting the rest done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from streamadapt.replay import fingerprint
from streamadapt.replay.policies import Policy, build_policy
from streamadapt.replay.recording import Recording
from streamadapt.replay.result import ReplayResult
from streamadapt.replay.rundir import RunDirectory
from streamadapt.replay.scenario import PolicySpec
from streamadapt.replay.unit import Conditions, UnitResult, run_unit
from streamadapt.replay.workers import Setup, Task, run_in_workers

Progress = Callable[[int, int, str], None]


@dataclass
class Entry:
    """A policy of the run, and where it stands."""

    name: str
    policy: PolicySpec | Policy
    cost: float
    key: str | None = None
    batches_done: int = 0
    unit: UnitResult | None = None


class Work:
    """The policies of a run, from the first to do to the last done.

    Args:
        entries: the policies.
        model: in evaluation mode.
        recording: the frames.
        conditions: how they are shown.
        progress: called with batches done, batches in all, and what is going on.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        model: nn.Module,
        recording: Recording,
        *,
        conditions: Conditions,
        progress: Progress | None,
    ) -> None:
        self._entries = entries
        self._model = model
        self._recording = recording
        self._conditions = conditions
        self._progress = progress
        self._directory: RunDirectory | None = None

    def resume(
        self, directory: RunDirectory, description: dict[str, Any], *, stream_key: str
    ) -> ReplayResult | None:
        """Take over what was done before; the result, if that was everything.

        Args:
            directory: where it is, and where the rest will be.
            description: of model and versions, among others.
            stream_key: from `fingerprint.stream_key`.
        """
        self._directory = directory
        device = next((p.device.type for p in self._model.parameters()), "cpu")
        for entry in self._entries:
            entry.key = fingerprint.unit_key(
                entry.policy,
                stream=stream_key,
                model=description["model"],
                device=device,
                conditions=self._conditions,
                cost=entry.cost,
                versions=description["versions"],
            )
        keys = {entry.name: entry.key for entry in self._entries}
        directory.describe({**description, "kind": "streamadapt.run", "policies": keys})
        for entry in self._entries:
            frames = len(self._recording.labels)
            entry.unit = directory.unit(entry.name, key=entry.key, frames=frames)
            entry.batches_done = 0 if entry.unit is None else len(self._recording)
        complete = all(entry.unit is not None for entry in self._entries)
        return directory.result() if complete else None

    def run_in_workers(self, folder: Path, key: str, *, model_name: str | None, jobs: int) -> None:
        """Whatever can travel to another process.

        Args:
            folder: holds the recording.
            key: of the recording.
            model_name: for a model that does not pickle.
            jobs: processes at a time.
        """
        model = fingerprint.try_to_pickle(self._model) or model_name
        tasks = []
        for number, entry in enumerate(self._entries):
            policy = fingerprint.try_to_pickle(entry.policy) if entry.unit is None else None
            if policy is not None:
                tasks.append(Task(number, policy, entry.cost))
        if model is None or not tasks:
            return
        sha256 = fingerprint.describe_model(self._model)["sha256"]
        run_in_workers(
            tasks,
            setup=Setup(folder, key, self._conditions, model, sha256),
            jobs=jobs,
            progress=self._went_on,
            done=self._finished,
        )

    def run_here(self) -> None:
        """Whatever is left."""
        for number, entry in enumerate(self._entries):
            if entry.unit is None:
                policy = entry.policy
                if isinstance(policy, PolicySpec):
                    rate = self._conditions.frames_per_second
                    policy = build_policy(policy, frames_per_second=rate)
                unit = run_unit(
                    policy,
                    self._model,
                    self._recording,
                    conditions=self._conditions,
                    cost=entry.cost,
                    progress=partial(self._went_on, number),
                )
                self._finished(number, unit)

    def result(self, description: dict[str, Any], wall_seconds: float) -> ReplayResult:
        """All of it together."""
        units = [entry.unit for entry in self._entries if entry.unit is not None]
        recording = self._recording
        streams = recording.streams(0, len(recording.labels))
        events = [event for unit in units for event in unit.events]
        return ReplayResult(
            **description,
            domains=recording.spans,
            batch_frames=recording.batch_frames.tolist(),
            frame_domains=recording.domains,
            frame_streams=streams,
            labelled=recording.labels >= 0,
            policies=[unit.series for unit in units],
            events=sorted(events, key=lambda event: event.batch),  # stable: then by policy
            wall_seconds=wall_seconds,
        )

    def _went_on(self, number: int, done: int, words: str) -> None:
        entry = self._entries[number]
        entry.batches_done = done
        if self._progress is not None:
            total = len(self._entries) * len(self._recording)
            so_far = sum(one.batches_done for one in self._entries)
            self._progress(so_far, total, f"{entry.name}: {words}")

    def _finished(self, number: int, unit: UnitResult) -> None:
        entry = self._entries[number]
        entry.unit = unit
        if self._directory is not None:
            self._directory.keep_unit(unit, key=entry.key)
        if entry.batches_done != len(self._recording):
            last = self._recording.spans[int(self._recording.domains[-1])].name
            self._went_on(number, len(self._recording), last)
