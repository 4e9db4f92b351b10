"""Statistics as the scale and shift that layers normalise with."""

from streamadapt.ops.tables.native import CENTRE as CENTRE
from streamadapt.ops.tables.native import PRECISION as PRECISION
from streamadapt.ops.tables.native import SCALE as SCALE
from streamadapt.ops.tables.native import SHIFT as SHIFT
from streamadapt.ops.tables.ops import fill_tables_ as fill_tables_

__all__ = ["CENTRE", "PRECISION", "SCALE", "SHIFT", "fill_tables_"]
