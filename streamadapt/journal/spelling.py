"""Estimators from what a journal or a command line says of them."""

from __future__ import annotations

import ast
from typing import Any

from streamadapt import estimators
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import Estimator


def estimator_from_repr(text: str) -> Estimator:
    """The estimator that `text`, such as `EMA(half_life_frames=360)`, is the repr of.

    Nothing is evaluated but literals.

    Raises:
        ConfigurationError: not the repr of one of this package's estimators.
    """
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("not a call with keywords")
        values = {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg}
        made = estimator_of(call.func.id, values)
    except (SyntaxError, ValueError, ConfigurationError) as error:
        raise ConfigurationError(
            f"The journal was kept with the estimator {text}, which is not one of this package's. "
            "Give `estimator` to replay it."
        ) from error
    return made


def estimator_of(name: str, parameters: dict[str, Any]) -> Estimator:
    """An estimator of this package by its name.

    Raises:
        ConfigurationError: unknown name, or parameters that it does not take.
    """
    known = {
        key: value
        for key in estimators.__all__
        if isinstance(value := getattr(estimators, key), type)
        and issubclass(value, Estimator)
        and value is not Estimator
    }
    if name not in known:
        raise ConfigurationError(f"Unknown estimator `{name}`. Known: {', '.join(sorted(known))}.")
    given = {key: value for key, value in parameters.items() if value is not None}
    try:
        return known[name](**given)
    except TypeError as error:
        raise ConfigurationError(f"`{name}` does not take these parameters: {error}.") from error
