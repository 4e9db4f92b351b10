"""Fold a BatchNorm's statistics into the weight and bias of the layer before it, in place."""

from streamadapt.ops.refold.native import refold_ as refold_

__all__ = ["refold_"]
