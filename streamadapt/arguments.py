"""Checks of arguments whose messages say what is legal."""

from __future__ import annotations

from typing import Any

from torch import nn

from streamadapt.errors import ConfigurationError
from streamadapt.estimators import Estimator


def check_types(model: Any, estimator: Any) -> None:
    """Refuse what is not a module, or not an estimator."""
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(estimator, Estimator):
        raise ConfigurationError(
            "`estimator` must be an instance of streamadapt.estimators.Estimator, got "
            f"{estimator!r}."
        )


def check_choice(name: str, value: object, legal: tuple[str, ...]) -> None:
    """Refuse a value that is not one of a few words."""
    if value not in legal:
        raise ConfigurationError(
            f"`{name}` must be {' or '.join(repr(one) for one in legal)}, got {value!r}."
        )


def check_at_least_one(**values: int) -> None:
    """Refuse anything but whole numbers from 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"`{name}` must be a whole number from 1, got {value!r}.")
