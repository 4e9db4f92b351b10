"""Which implementation an operation has on CUDA: Triton's where it can be imported."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any


@cache
def triton_problem() -> str | None:
    """Why Triton's kernels cannot be had; None: they can."""
    if os.environ.get("STREAMADAPT_KERNELS") == "off":
        return "STREAMADAPT_KERNELS=off"
    try:
        importlib.import_module("triton")
    except Exception as error:  # whatever a broken installation does
        return f"Triton cannot be imported: {error}"
    return None


@cache
def _kernels(module: str) -> ModuleType | None:
    return None if triton_problem() is not None else importlib.import_module(module)


def on_cuda(module: str, native: Callable[..., Any]) -> Callable[..., Any]:
    """The function of the same name in a module of kernels, loaded when it is first called.

    Args:
        module: such as `streamadapt.ops.apply.triton`.
        native: what runs where there are no kernels; its name is the other's, too.
    """

    def run(*args: Any) -> Any:
        kernels = _kernels(module)
        return (native if kernels is None else getattr(kernels, native.__name__))(*args)

    return run
