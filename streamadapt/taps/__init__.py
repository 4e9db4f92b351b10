"""How moments get out of a model and statistics into it."""

from streamadapt.taps.binding import BufferBinding as BufferBinding
from streamadapt.taps.folding import FoldReport as FoldReport
from streamadapt.taps.folding import fold as fold
from streamadapt.taps.hooks import ModelTap as ModelTap
from streamadapt.taps.hooks import verify_remappable as verify_remappable
from streamadapt.taps.inventory import AdaptableLayer as AdaptableLayer
from streamadapt.taps.inventory import Inventory as Inventory
from streamadapt.taps.inventory import fingerprint_of as fingerprint_of
from streamadapt.taps.inventory import take_inventory as take_inventory
from streamadapt.taps.step import Staging as Staging
from streamadapt.taps.step import Step as Step

__all__ = [
    "AdaptableLayer",
    "BufferBinding",
    "FoldReport",
    "Inventory",
    "ModelTap",
    "Staging",
    "Step",
    "fingerprint_of",
    "fold",
    "take_inventory",
    "verify_remappable",
]
