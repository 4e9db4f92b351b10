"""No adaptation."""

from __future__ import annotations

from streamadapt.bank import State
from streamadapt.estimators.base import Estimator, Observation


class Frozen(Estimator):
    """Keeps the statistics as they are: the baseline that everything is compared with."""

    def update(self, state: State, observed: Observation) -> State:
        """The same state."""
        return state
