"""From partial sums to the moments of every frame."""

from streamadapt.ops.finalise.ops import finalise_ as finalise_
from streamadapt.ops.finalise.ops import finalise_layer_ as finalise_layer_

__all__ = ["finalise_", "finalise_layer_"]
