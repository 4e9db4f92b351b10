"""How a model's layers are normalised and looked at, and what commits a step."""

from __future__ import annotations

from typing import Literal

from streamadapt.errors import ConfigurationError
from streamadapt.ops.compiled import Kernels, find
from streamadapt.ops.device import DeviceOperations, device_operations
from streamadapt.ops.devices import triton_problem
from streamadapt.taps import Inventory

Backend = Literal["auto", "compiled", "triton", "hooks"]


def choose_kernels(
    backend: Backend, inventory: Inventory
) -> tuple[Kernels | DeviceOperations | None, str | None]:
    """The kernels for a model, and why there are none although they would be of use.

    Args:
        backend: what is wished.
        inventory: the model's.

    Raises:
        ConfigurationError: they are asked for, and cannot be had.
    """
    if backend == "hooks":
        return None, None
    device = inventory.layers[0].buffers[0].device
    kind = {"cpu": "compiled", "cuda": "triton"}.get(device.type)
    found: Kernels | DeviceOperations | None = None
    problem = None
    if kind is None or backend not in ("auto", kind):
        problem = f"the model is on {device}"
    elif kind == "compiled":
        compiled = find()
        found, problem = compiled.kernels, compiled.problem
    else:
        problem = triton_problem()
        found = None if problem is not None else device_operations("triton")
    if backend != "auto" and problem is not None:
        raise ConfigurationError(
            f'`backend="{backend}"` cannot be had: {problem}. `backend="auto"` does without.'
        )
    return found, problem
