"""Every exception that streamadapt raises.

::

    StreamAdaptError
    ├── ConfigurationError      an argument or a combination of arguments is wrong; a ValueError
    │   └── ScenarioError       a scenario file is wrong: unknown key, missing value
    ├── UnsupportedModelError   the model has nothing to adapt, or hides what it has
    ├── ModelStateError         the wrapped model is in a state that cannot be served
    ├── StreamError             `streams=` does not fit the batch or the bank; a ValueError
    ├── SnapshotError           no such snapshot, or one that does not fit; a LookupError
    ├── ConcurrencyError        a step was started inside a step
    └── DataError               frames, labels or files that cannot be used

The model's own exceptions are never wrapped: they reach the caller as they are.
"""

from __future__ import annotations


class StreamAdaptError(Exception):
    """Base of every error of this package. `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigurationError(StreamAdaptError, ValueError):
    """An argument is outside its legal range, or two arguments contradict each other."""

    exit_code = 2


class ScenarioError(ConfigurationError):
    """A scenario file has an unknown key, lacks a value, or holds one of the wrong kind."""


class UnsupportedModelError(StreamAdaptError):
    """The model has no BatchNorm statistics to adapt; the message says what was found."""


class ModelStateError(StreamAdaptError):
    """The wrapped model cannot be served as it is, for example a BatchNorm in training mode."""


class StreamError(StreamAdaptError, ValueError):
    """`streams=` has the wrong length, names too many streams, or cannot be mapped to frames."""

    exit_code = 2


class SnapshotError(StreamAdaptError, LookupError):
    """A snapshot that does not exist was asked for."""

    exit_code = 2

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConcurrencyError(StreamAdaptError, RuntimeError):
    """A processor step was started from inside a step of the same processor."""


class DataError(StreamAdaptError, ValueError):
    """Input data cannot be used: no labels, wrong shape, unreadable file."""


def one_line(error: BaseException) -> str:
    """Any exception as its type and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
