"""Corruptions of the library `imagecorruptions` (the extra `streamadapt[corruptions]`).

They are those of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261), made one image at a
time. The library draws from NumPy's global generator: it is seeded for each call and put back, so
that the pixels depend on the place in the stream and on nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import ConfigurationError, one_line
from streamadapt.replay.spelling import suggest


def corrupt_with_library(
    x: NDArray[np.uint8], name: str, *, severity: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Degrade frames as ImageNet-C does.

    Args:
        x: uint8 `[N, H, W, 3]`; the library asks for at least 32 x 32 pixels.
        name: as in the library, such as `"snow"` or `"glass_blur"`.
        severity: 1 to 5.
        rng: where the library's seed comes from; it is advanced.

    Raises:
        ConfigurationError: the library is missing, has no such corruption, or cannot do it.
    """
    try:
        import imagecorruptions
    except ImportError as error:
        raise ConfigurationError(
            f"The corruption `imagecorruptions:{name}` needs the library `imagecorruptions`, which "
            f"cannot be imported ({one_line(error)}). Install it with "
            "`pip install streamadapt[corruptions]`."
        ) from error
    known = sorted(imagecorruptions.get_corruption_names("all"))
    if name not in known:
        raise ConfigurationError(
            f"The library `imagecorruptions` has no corruption `{name}`.{suggest(name, known)}"
        )
    state = np.random.get_state()
    np.random.seed(int(rng.integers(2**32)))
    try:
        frames = [
            imagecorruptions.corrupt(frame, severity=severity, corruption_name=name) for frame in x
        ]
    except Exception as error:  # whatever the library raises
        raise ConfigurationError(
            f"`imagecorruptions:{name}` failed on frames of {x.shape[1]} x {x.shape[2]} pixels "
            f"({one_line(error)})."
        ) from error
    finally:
        np.random.set_state(state)
    return np.stack(frames).astype(np.uint8)
