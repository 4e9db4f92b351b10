"""How long to wait before a camera is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from streamadapt.errors import ConfigurationError


@dataclass(frozen=True)
class Backoff:
    """Exponential, with jitter: cameras that were lost together do not come back together.

    The n-th wait is drawn evenly from half to the whole of `first_seconds * 2^n`, at most
    `most_seconds`.

    Args:
        first_seconds: the longest first wait.
        most_seconds: the longest of all.
        give_up_seconds: a camera that is away for so long on end has failed; None: it is tried for
            ever.
        first_contact_seconds: likewise, of one that was never there.

    Raises:
        ConfigurationError: an argument out of range.
    """

    first_seconds: float = 0.5
    most_seconds: float = 30.0
    give_up_seconds: float | None = None
    first_contact_seconds: float | None = None
    random: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.first_seconds <= self.most_seconds:
            raise ConfigurationError(
                "`first_seconds` must be positive and at most `most_seconds`, got "
                f"{self.first_seconds} and {self.most_seconds}."
            )
        for name in ("give_up_seconds", "first_contact_seconds"):
            value = getattr(self, name)
            if value is not None and value < 0.0:
                raise ConfigurationError(f"`{name}` must not be negative, got {value}.")

    def wait_seconds(self, attempt: int) -> float:
        """Of the `attempt`-th wait on end, from 0."""
        longest = min(self.first_seconds * 2.0 ** min(attempt, 64), self.most_seconds)
        return longest * (0.5 + 0.5 * self.random.random())
