"""Gets a model by its name."""

from __future__ import annotations

import importlib
import os
import sys
from functools import reduce
from typing import Any

from torch import nn

from streamadapt.errors import ConfigurationError, DataError, one_line


def load_named(name: str, what: str) -> Any:
    """What `"package.module:name"` names; modules in the working directory count.

    Raises:
        ConfigurationError: it does not import, or is not there; `what` says what it ought to be.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever somebody else's module raises when it is imported
        raise ConfigurationError(
            f"{what} `{name}`: cannot import `{module_name}` ({one_line(error)})."
        ) from error
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise ConfigurationError(
            f"{what} `{name}`: `{module_name}` has no `{attribute}`."
        ) from error


def load_model(name: str) -> nn.Module:
    """The model that `"package.module:factory"` makes; modules in the working directory count.

    Raises:
        ConfigurationError: it does not import, is not there, is not callable, or makes something
            else.
        DataError: the factory raised.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(
            f"A model is named `package.module:factory`, got `{name}`. The factory is a callable "
            "without arguments that returns an nn.Module."
        )
    factory = load_named(name, "Model")
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ConfigurationError(
            f"Model `{name}`: `{attribute}` is a {type(factory).__name__}, not a factory. "
            "Name a callable without arguments that returns the model."
        )
    try:
        model = factory()
    except Exception as error:  # whatever somebody else's factory raises
        raise DataError(f"Model `{name}`: `{attribute}()` failed ({one_line(error)}).") from error
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"Model `{name}`: `{attribute}()` returned a {type(model).__name__}, not an nn.Module."
        )
    return model
