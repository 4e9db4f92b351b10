"""What is here to work with, and what a model has to adapt. Changes nothing, prints nothing."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from streamadapt.backends import choose_kernels
from streamadapt.bank import StatisticsBank
from streamadapt.errors import ModelStateError, UnsupportedModelError
from streamadapt.estimators import Restarting
from streamadapt.layout import BankLayout
from streamadapt.ops.compiled import find
from streamadapt.taps import AdaptableLayer, Inventory, take_inventory, verify_remappable
from streamadapt.taps.chains import trace_chains
from streamadapt.taps.inventory import named_modules

_PACKAGES = ("streamadapt", "torch", "numpy", "safetensors", "prometheus-client")
_OPTIONAL = ("pillow", "av", "triton", "onnxruntime")
_REQUIREMENT = re.compile(r"""([\w.-]+)[^;]*;.*extra\s*==\s*["']([\w-]+)["']""")


@dataclass(frozen=True)
class Device:
    """Something that can run a model.

    Attributes:
        name: `cpu`, `cuda:0`, ...
        kind: what it is: instruction set and threads, or the GPU's name.
        capability: what the kernels are chosen by.
        memory_bytes: of a GPU; None for the CPU.
    """

    name: str
    kind: str
    capability: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Extra:
    """An optional part of the package; usable when nothing is missing."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class LayerReport:
    """A BatchNorm layer, or a place where one seems to have been.

    Attributes:
        state: `adaptable`, `excluded` (by the caller), `without statistics` or `folded`.
        kind: of an adaptable layer, as in `streamadapt.taps.AdaptableLayer`.
        state_bytes: what it costs a camera with the default estimator, padding included.
        tap: how an adaptable layer would be looked at, and what is done in one pass with it.
    """

    name: str
    state: str
    type: str
    kind: str | None
    channels: int | None
    dtype: str | None
    state_bytes: int
    tap: str | None = None


@dataclass(frozen=True)
class ModelReport:
    """What a model has to adapt.

    Attributes:
        model: its class.
        layers: every BatchNorm layer, in registration order, and places where one was folded.
        others: other normalisation layers by class, which have nothing to adapt.
        bytes_per_stream: state that each camera costs with the default estimator.
        refused: why it would not be wrapped as it is, each with the remedy; empty if it would.
        limits: what will not work although it can be wrapped.
        notes: what stays as it is.
    """

    model: str
    layers: tuple[LayerReport, ...]
    others: dict[str, int]
    bytes_per_stream: int
    refused: tuple[str, ...]
    limits: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The whole finding.

    Attributes:
        versions: of Python and of packages; None for what is not installed.
        devices: the CPU first.
        backends: ways to collect moments.
        extras: optional parts of the package.
        model: None where no model was given.
    """

    versions: dict[str, str | None]
    devices: tuple[Device, ...]
    backends: tuple[str, ...]
    extras: tuple[Extra, ...]
    model: ModelReport | None

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return {"schema_version": 1, "kind": "streamadapt.doctor", **asdict(self)}


def examine(model: nn.Module | None = None) -> Report:
    """Look at the installation, and at a model if there is one.

    Args:
        model: stays as it is; nothing is wrapped.
    """
    return Report(
        versions=_versions(),
        devices=tuple(_devices()),
        backends=tuple(_backends()),
        extras=tuple(_extras()),
        model=None if model is None else examine_model(model),
    )


def examine_model(model: nn.Module) -> ModelReport:
    """Take a model's inventory and say what would happen to it.

    Args:
        model: stays as it is; layers of other kinds than PyTorch's own are run once on a small
            random input, to see whether several streams and the default estimator would work.
    """
    inventory = take_inventory(model)
    refused = tuple(_refusals(inventory))
    return ModelReport(
        model=inventory.model,
        layers=_layer_reports(model, inventory),
        others=inventory.others,
        bytes_per_stream=_bytes_per_stream(inventory.layers),
        refused=refused,
        limits=() if refused else tuple(_limits(inventory.layers)),
        notes=inventory.notes,
    )


def _backends() -> Iterator[str]:
    found = find()
    if found.kernels is not None:
        yield f"compiled kernels (CPU, {found.kernels.instruction_set})"
    else:
        yield f"no compiled kernels: {found.problem}"
    yield "hooks (PyTorch's kernels, every device)"


def _refusals(inventory: Inventory) -> Iterator[str]:
    if inventory.problem is not None:
        yield inventory.problem
    for layer in inventory.layers:
        try:
            layer.require_inference()
        except ModelStateError as error:
            yield str(error)
            return  # model.eval() puts all of them right


def _limits(layers: Sequence[AdaptableLayer]) -> Iterator[str]:
    for layer in layers:
        try:
            verify_remappable(layer)
        except UnsupportedModelError as error:
            yield str(error)


def _layer_reports(model: nn.Module, inventory: Inventory) -> tuple[LayerReport, ...]:
    adaptable = {layer.name: layer for layer in inventory.layers}
    taps = _taps(model, inventory)
    state = {
        **dict.fromkeys(inventory.excluded, "excluded"),
        **dict.fromkeys(inventory.without_statistics, "without statistics"),
        **dict.fromkeys(inventory.folded, "folded"),
    }
    reports = []
    for name, module in named_modules(model):
        if name in adaptable:
            reports.append(_adaptable(adaptable[name], taps.get(name)))
        elif name in state:
            channels = getattr(module, "num_features", None)
            reports.append(
                LayerReport(name, state[name], type(module).__name__, None, channels, None, 0)
            )
    return tuple(reports)


def _taps(model: nn.Module, inventory: Inventory) -> dict[str, str]:
    """How layers would be looked at, by name; as `describe` says it of a processor."""
    layers = inventory.layers
    if inventory.problem is not None or not layers:
        return {}
    kernels, _ = choose_kernels("auto", inventory)
    if kernels is None:
        return {one.name: "folded" if one.kind == "folded" else "hooks" for one in layers}
    found, alone = trace_chains(model, layers)
    manners = {index: f"BatchNorm; {reason}" for index, reason in alone.items()}
    manners |= {chain.layer: chain.manner for one in found for chain in one.chains}
    return {
        layer.name: f"compiled: {manners.get(index, 'BatchNorm')}"
        if layer.kind == "batchnorm"
        else "folded"
        if layer.kind == "folded"
        else "hooks"
        for index, layer in enumerate(layers)
    }


def _adaptable(layer: AdaptableLayer, tap: str | None) -> LayerReport:
    channels = _channels(layer)
    mean, _ = layer.buffers
    return LayerReport(
        name=layer.name,
        state="adaptable",
        type=type(layer.module).__name__,
        kind=layer.kind,
        channels=channels,
        dtype=str(mean.dtype).removeprefix("torch."),
        state_bytes=_bytes_of(channels),
        tap=tap,
    )


def _bytes_of(channels: int | None) -> int:
    if channels is None:
        return 0
    bank = _bank_of([("", channels, 0.0)])
    return bank.data[0].nbytes + bank.counts[0].nbytes


def _bytes_per_stream(layers: Sequence[AdaptableLayer]) -> int:
    sizes = [(layer, _channels(layer)) for layer in layers]
    known = [(layer.name, size, layer.eps) for layer, size in sizes if size is not None]
    return _bank_of(known).bytes_per_row if known else 0


def _bank_of(layers: Sequence[tuple[str, int, float]]) -> StatisticsBank:
    """What one stream has with the default estimator."""
    estimator = Restarting()
    return StatisticsBank(
        BankLayout(layers),
        rows=1,
        source=[(torch.zeros(size), torch.ones(size)) for _, size, _ in layers],
        device=torch.device("cpu"),
        compensated=estimator.compensated,
        counted=estimator.counted,
        scalars=estimator.scalars,
        aside=estimator.aside,
    )


def _channels(layer: AdaptableLayer) -> int | None:
    """None for a lazy layer, which has no shape before its first input."""
    return None if is_lazy(layer.buffers[0]) else layer.channels


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    return found | {name: _version(name) for name in (*_PACKAGES, *_OPTIONAL)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Device]:
    yield Device(
        name="cpu",
        kind=f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        capability=torch.backends.cpu.get_cpu_capability(),
        memory_bytes=None,
    )
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Device(
            name=f"cuda:{index}",
            kind=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            memory_bytes=properties.total_memory,
        )


def _extras() -> Iterator[Extra]:
    """As the installed package declares them; none where it runs from a bare checkout."""
    try:
        declared = metadata.requires("streamadapt") or []
    except metadata.PackageNotFoundError:
        return
    missing: dict[str, list[str]] = {}
    for requirement in declared:
        match = _REQUIREMENT.match(requirement)
        if match is not None and match[2] != "dev":
            absent = missing.setdefault(match[2], [])
            if _version(match[1]) is None:
                absent.append(match[1])
    for name, absent in missing.items():
        yield Extra(name, tuple(absent))
