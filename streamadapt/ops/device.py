"""The operations of a step on a device, called directly: PyTorch's dispatcher takes longer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from streamadapt.ops import apply, commit, correct, finalise, tables

_WHERE = {
    "collect_partials": apply,
    "apply_collect": apply,
    "apply_collect_": apply,
    "finalise_": finalise,
    "finalise_layer_": finalise,
    "correct_own_": correct,
    "correct_later_": correct,
    "fill_tables_": tables,
}


@dataclass(frozen=True)
class DeviceOperations:
    """One implementation of each; what they do is said where they are registered.

    Attributes:
        name: of the implementation.
        device_type: of the tensors that it is for.
        commits: the operators of commits, `ops.commit.triton`; None: PyTorch commits.
    """

    name: str
    device_type: str
    commits: ModuleType | None
    collect_partials: Callable[..., Any]
    apply_collect: Callable[..., Any]
    apply_collect_: Callable[..., Any]
    finalise_: Callable[..., Any]
    finalise_layer_: Callable[..., Any]
    correct_own_: Callable[..., Any]
    correct_later_: Callable[..., Any]
    fill_tables_: Callable[..., Any]


@cache
def device_operations(name: str = "triton", *, device_type: str = "cuda") -> DeviceOperations:
    """The operations of an implementation: `triton`, or `native` for ATen's kernels.

    Raises:
        ImportError: it cannot be had.
    """
    found = {}
    for operation, package in _WHERE.items():
        folder = "device" if (name, package) == ("native", correct) else name
        module = importlib.import_module(f"{package.__name__}.{folder}")
        found[operation] = getattr(module, operation)
    commits = None if name == "native" else importlib.import_module(f"{commit.__name__}.{name}")
    return DeviceOperations(name=name, device_type=device_type, commits=commits, **found)
