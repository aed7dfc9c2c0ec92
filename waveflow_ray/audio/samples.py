"""Samples as they are passed around, and what is taken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.int16] | NDArray[np.float32]
"""``(frames, channels)``: int16, full scale 32768, or float32, full scale 1.0."""
MAX_CHANNELS = 8
MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 192_000
MAX_SAMPLE = np.float32(1e30)
"""Of full scale 1.0: what is larger is damage."""


def silence_non_finite(block: NDArray[np.float32]) -> None:
    """NaN and infinite samples become 0, in place; so do those whose sums would be infinite."""
    # Most blocks need no look at every sample. With a NaN in it, no comparison holds.
    if block.min(initial=0) >= -MAX_SAMPLE and block.max(initial=0) <= MAX_SAMPLE:
        return
    block[~(np.abs(block) <= MAX_SAMPLE)] = 0.0
