"""Moments of every frame of a BatchNorm input."""

from streamadapt.ops.collect.native import Scratch as Scratch
from streamadapt.ops.collect.native import collect as collect

__all__ = ["Scratch", "collect"]
