"""What a replay was made of, in words for the result and as digests for what may be kept of it."""

from __future__ import annotations

import hashlib
import json
import pickle
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import streamadapt
from streamadapt.replay.corruptions import LIBRARY_PREFIX
from streamadapt.replay.data import LabelledData
from streamadapt.replay.policies import Policy
from streamadapt.replay.published import is_video
from streamadapt.replay.recording import Recording
from streamadapt.replay.scenario import PolicySpec, Scenario
from streamadapt.replay.unit import Conditions

# What has no say in which frames come.
_NOT_OF_THE_STREAM = frozenset(
    {"name", "model", "data", "policies", "mean", "std", "frames_per_second", "episodic", "time"}
)


def versions(scenario: Scenario) -> dict[str, str]:
    """Versions that a result depends on."""
    out = {
        "streamadapt": streamadapt.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    if any(domain.corruption.startswith(LIBRARY_PREFIX) for domain in scenario.domains):
        out |= _installed("imagecorruptions")
    if any(
        domain.images is not None and is_video(Path(domain.images)) for domain in scenario.domains
    ):
        out |= _installed("av")
    return out


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Class, and the SHA-256 of weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return {"class": type(model).__name__, "sha256": digest.hexdigest()}


def images_sha256(data: LabelledData | None) -> str | None:
    """SHA-256 of the images at their final size; None where every domain brings its own."""
    return None if data is None else hashlib.sha256(np.ascontiguousarray(data.x).data).hexdigest()


def describe_data(
    data: LabelledData | None, recording: Recording, *, images: str | None
) -> dict[str, Any]:
    """How many images of which size and how many classes; SHA-256 of images and of frames.

    Args:
        data: None where every domain brings its own: then there are only the frames to describe.
        recording: the frames.
        images: from `images_sha256`.
    """
    _, height, width, _ = recording.frames.shape
    if data is None:
        samples, classes = len(recording.labels), int(recording.labels.max()) + 1
    else:
        samples, classes = len(data), int(data.y.max()) + 1
    return {
        "samples": samples,
        "height": height,
        "width": width,
        "classes": classes,
        "sha256": images or recording.sha256,
        "frames_sha256": recording.sha256,
    }


def stream_key(scenario: Scenario, data: LabelledData | None, *, images: str | None) -> str:
    """Two streams of one key have the same frames, as far as can be told without making them.

    Args:
        scenario: what is streamed.
        data: what it is made from.
        images: from `images_sha256`.
    """
    plain = scenario.to_dict()
    part = {key: value for key, value in plain.items() if key not in _NOT_OF_THE_STREAM}
    labels = None if data is None else hashlib.sha256(data.y.astype("<i8").tobytes()).hexdigest()
    return digest_of(
        {
            "scenario": part,
            "images": images,
            "labels": labels,
            "files": _files(scenario),
            "versions": versions(scenario),
        }
    )


def unit_key(
    policy: PolicySpec | Policy,
    *,
    stream: str,
    model: Mapping[str, Any],
    device: str,
    conditions: Conditions,
    cost: float,
    versions: Mapping[str, str],
) -> str | None:
    """Two units of one key come to the same result; None for a policy that cannot be told.

    Args:
        policy: the policy.
        stream: from `stream_key`.
        model: from `describe_model`.
        device: kind of device that the model is on.
        conditions: how frames are shown.
        cost: of the policy, in units of the frozen model.
        versions: from `versions`.
    """
    if isinstance(policy, PolicySpec):
        what: object = {**vars(policy), "parameters": dict(policy.parameters)}
    else:
        pickled = try_to_pickle(policy)
        if pickled is None:
            return None
        what = hashlib.sha256(pickled).hexdigest()
    return digest_of(
        {
            "stream": stream,
            "model": dict(model),
            "device": device,
            "conditions": asdict(conditions),
            "cost": cost,
            "versions": dict(versions),
            "policy": what,
        }
    )


def digest_of(value: object) -> str:
    """SHA-256 of a plain value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def try_to_pickle(value: object) -> bytes | None:
    """The pickle, or None for what does not: somebody else's object may refuse in any way."""
    try:
        return pickle.dumps(value)
    except Exception:
        return None


def _installed(package: str) -> dict[str, str]:
    try:
        return {package: metadata.version(package)}
    except metadata.PackageNotFoundError:  # whoever needs it says so
        return {}


def _files(scenario: Scenario) -> dict[str, object]:
    """Size and time of change of every file that domains name: all of them is too much to read."""
    out: dict[str, object] = {}
    if scenario.split is not None:
        split = scenario.base / scenario.split
        out[str(scenario.split)] = split.read_text(encoding="utf-8") if split.is_file() else None
    for domain in scenario.domains:
        if domain.images is not None:
            path = scenario.base / domain.images
            found = sorted(path.rglob("*")) if path.is_dir() else [path, path.parent / "labels.npy"]
            out[domain.images] = [_state(one) for one in found if one.is_file()]
            if domain.labels is not None:
                out[domain.labels] = _state(scenario.base / domain.labels)
    return out


def _state(path: Path) -> list[object]:
    if not path.is_file():
        return [path.name]
    state = path.stat()
    return [path.name, state.st_size, state.st_mtime_ns]
