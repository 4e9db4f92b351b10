# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Constants of `Restarting` and orders of values, as its kernels have them."""

import math

import triton
import triton.language as tl

SETTLING = tl.constexpr(0.0)
FOLLOWING = tl.constexpr(1.0)
RESTING = tl.constexpr(2.0)

# The order of the scalars in a row's tallies; `SCALARS` in `plan.py`.
PHASE = tl.constexpr(0)
SETTLED_FRAMES = tl.constexpr(1)
SETTLED_SECONDS = tl.constexpr(2)
PENDING_FRAMES = tl.constexpr(3)
PENDING_SECONDS = tl.constexpr(4)
BLOCKS = tl.constexpr(5)
EXCESS = tl.constexpr(6)
NEARER = tl.constexpr(7)
RECENT = tl.constexpr(8)
INSISTS = tl.constexpr(9)
LEVEL = tl.constexpr(11)
MATERIAL = tl.constexpr(12)
SCALARS = tl.constexpr(13)

# The order of the parameters; `RESTARTING` in `plan.py`.
BLOCK_FRAMES = tl.constexpr(0)
BLOCK_SECONDS = tl.constexpr(1)
ALARM = tl.constexpr(2)
CLIP = tl.constexpr(3)
MAX_WEIGHT = tl.constexpr(4)
USUAL_LEVEL = tl.constexpr(5)
UNLIKE = tl.constexpr(6)
WATCHED = tl.constexpr(7)

# Of each chunk of a row.
INNOVATION = tl.constexpr(0)
FROM_SOURCE = tl.constexpr(1)
NEAR = tl.constexpr(2)
DIFFERS = tl.constexpr(3)
ASIDE = tl.constexpr(4)
MOVED = tl.constexpr(5)
SEEN = tl.constexpr(6)
PARTS = tl.constexpr(7)

LONGEST_FRAME = tl.constexpr(1.0)
SHORTEST_FRAME = tl.constexpr(1e-3)
WHOLE = tl.constexpr(1.0 - 1e-9)
TRUSTED_SIGMAS = tl.constexpr(8.0)
LEAST_VARIANCE = tl.constexpr(math.exp(-7.0))
MOST_VARIANCE = tl.constexpr(math.exp(4.0))
TINY = tl.constexpr(1e-150)
LEVEL_HALF_LIFE = tl.constexpr(128.0)
KNOWN_AFTER = tl.constexpr(192.0)
LEARNED_AFTER = tl.constexpr(16.0)
SLACK = tl.constexpr(2.0)
PATIENCE = tl.constexpr(8.0)
NEARER_LIMIT = tl.constexpr(2.0)
NEARER_SLACK = tl.constexpr(0.1)
LARGEST_RATIO = tl.constexpr(6.0)
LEAST_SHARE = tl.constexpr(0.4)
LN_2 = tl.constexpr(math.log(2.0))


@triton.jit
def within(x, low, high):
    """`x` clamped."""
    return tl.minimum(tl.maximum(x, low), high)
