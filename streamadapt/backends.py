"""How a model's layers are normalised and looked at."""

from __future__ import annotations

from typing import Literal

from streamadapt.errors import ConfigurationError
from streamadapt.ops.compiled import Kernels, find
from streamadapt.taps import Inventory

Backend = Literal["auto", "compiled", "hooks"]


def choose_kernels(backend: Backend, inventory: Inventory) -> tuple[Kernels | None, str | None]:
    """The compiled kernels for a model, and why there are none although they would be of use.

    Args:
        backend: what is wished.
        inventory: the model's.

    Raises:
        ConfigurationError: they are asked for, and cannot be had.
    """
    if backend == "hooks":
        return None, None
    device = inventory.layers[0].buffers[0].device
    found = find()
    problem = found.problem if device.type == "cpu" else f"the model is on {device}"
    if backend == "compiled" and problem is not None:
        raise ConfigurationError(
            f'`backend="compiled"` cannot be had: {problem}. `backend="auto"` does without.'
        )
    if device.type != "cpu":
        return None, None
    return found.kernels, problem
