"""Normalise with other statistics than a layer's own, by moving its input."""

from streamadapt.ops.remap.reference import remap_coefficients as remap_coefficients

__all__ = ["remap_coefficients"]
