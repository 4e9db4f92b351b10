"""Alignment of the features in front of a classifier head."""

from streamadapt.alignment.offline import coral as coral
from streamadapt.alignment.source import Coral as Coral

__all__ = ["Coral", "coral"]
