"""Moments of every frame of a BatchNorm input."""

from streamadapt.ops.collect.native import Scratch as Scratch
from streamadapt.ops.collect.native import collect as collect
from streamadapt.ops.collect.staged import StagedMoments as StagedMoments

__all__ = ["Scratch", "StagedMoments", "collect"]
