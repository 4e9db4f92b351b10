"""Normalise, add, clamp, and take the sums that moments are made of, in one pass."""

from streamadapt.ops.apply.ops import apply_collect as apply_collect
from streamadapt.ops.apply.ops import apply_collect_ as apply_collect_
from streamadapt.ops.apply.ops import collect_partials as collect_partials
from streamadapt.ops.apply.shapes import Shape as Shape
from streamadapt.ops.apply.shapes import shape_of as shape_of

__all__ = ["Shape", "apply_collect", "apply_collect_", "collect_partials", "shape_of"]
