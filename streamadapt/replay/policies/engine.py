"""What policies share whose statistics lie in the package's own engine."""

from __future__ import annotations

import math
from collections.abc import Mapping

from streamadapt.drift import location_scale_distance
from streamadapt.engine import AdaptationEngine
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import Estimator, Frozen
from streamadapt.moments import Moments
from streamadapt.replay.policies.base import BasePolicy
from streamadapt.taps import take_inventory
from streamadapt.weighing import StepRows

ONE_ROW = StepRows((0,), None, (0.0,))


class EnginePolicy(BasePolicy):
    """A policy with one set of statistics, which all cameras of a scenario share."""

    _engine: AdaptationEngine | None = None

    @property
    def engine(self) -> AdaptationEngine:
        """The engine around the model, between `start` and `finish`."""
        assert self._engine is not None, "start() comes first"
        return self._engine

    def wrap(self, *, bound: bool, estimator: Estimator | None = None) -> None:
        """Put an engine around the model.

        Args:
            bound: the model reads the statistics itself; otherwise a step moves its inputs.
            estimator: what `engine.commit` does, in synchronous timing.

        Raises:
            UnsupportedModelError: no BatchNorm statistics to adapt.
        """
        inventory = take_inventory(self.model)
        inventory.require_adaptable()
        self._engine = AdaptationEngine(
            inventory,
            estimator=estimator or Frozen(),
            timing="synchronous",
            rows=1,
            bound=bound,
            frames_per_row=1,
        )

    def source(self) -> Moments:
        """The source's statistics, `[padded channels]` float64."""
        return self.engine.bank.read([0]).source

    def distance(self) -> Mapping[str, float]:
        """Distance of each layer from the source."""
        return self.distance_of(self.engine.bank.read([0]).moments)

    def distance_of(self, moments: Moments) -> dict[str, float]:
        """Distance of `moments`, `[1, padded channels]`, from the source, by layer."""
        layout = self.engine.layout
        apart = location_scale_distance(moments, self.source(), layout.eps)
        values = layout.mean_per_layer(apart)[0].tolist()
        return {layer.name: value for layer, value in zip(layout.layers, values, strict=True)}

    def finish(self) -> None:
        """Drop the models and the engine."""
        super().finish()
        self._engine = None


def check_share(**values: float) -> None:
    """Refuse what is not in (0, 1]."""
    for name, value in values.items():
        if not 0.0 < value <= 1.0:
            raise ConfigurationError(f"`{name}` must be in (0, 1], got {value}.")


def check_positive(**values: float) -> None:
    """Refuse what is not positive and finite."""
    for name, value in values.items():
        if not (value > 0.0 and math.isfinite(value)):
            raise ConfigurationError(f"`{name}` must be positive and finite, got {value}.")
