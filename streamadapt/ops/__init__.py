"""The operations on the way of a batch, one folder each; `reference.py` is the specification."""

from streamadapt.ops.collect import collect as collect
from streamadapt.ops.reduce import reduce_frames as reduce_frames
from streamadapt.ops.remap import remap_coefficients as remap_coefficients

__all__ = ["collect", "reduce_frames", "remap_coefficients"]
