"""The model as it is."""

from __future__ import annotations

from streamadapt.replay.policies.base import BasePolicy


class FrozenPolicy(BasePolicy):
    """Source statistics throughout: what every other policy is measured against."""

    def __init__(self, name: str = "frozen") -> None:
        super().__init__(name, "source statistics")
