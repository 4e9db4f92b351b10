"""AdaBN over each whole domain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from streamadapt.errors import ConfigurationError
from streamadapt.offline import adabn
from streamadapt.replay.policies.base import BasePolicy


class AdaBNPolicy(BasePolicy):
    """Offline AdaBN as an oracle: statistics of the whole domain before its first frame.

    Args:
        name: what tables and charts call it.
        method: as in `streamadapt.adabn`.

    Reference:
        Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", 2016,
        arXiv:1603.04779.
    """

    oracle = True

    def __init__(
        self, name: str = "adabn", *, method: Literal["one_pass", "layerwise"] = "one_pass"
    ) -> None:
        if method not in ("one_pass", "layerwise"):
            raise ConfigurationError(f'`method` must be "one_pass" or "layerwise", got {method!r}.')
        super().__init__(name, f"adabn over each whole domain, method={method!r}")
        self.method = method

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        """Adapt the source to the domain."""
        assert self._source is not None, "start() comes first"
        # Layerwise goes over the frames once a layer: they are made once.
        batches = list(frames) if self.method == "layerwise" else frames
        self._model = adabn(self._source, batches, method=self.method)
