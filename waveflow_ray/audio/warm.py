"""Compiles the inner loops of mixes ahead of the first one: ``python -m waveflow_ray.audio.warm``.

For those who make images or set up machines. What is compiled depends on the kind, layout and
writability of each array, so the code of mixes is called with all that it meets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waveflow_ray.audio.bus import add_to_bus
from waveflow_ray.audio.clip import Clip
from waveflow_ray.audio.encode import Encoding, MixWriter
from waveflow_ray.audio.loudness import LoudnessMeter
from waveflow_ray.audio.pcm import PcmLayout, decode
from waveflow_ray.audio.samples import Block

RATE = 8000
FRAMES = 1000
BITS = 24
ENCODINGS = (Encoding("wav", 16), Encoding("wav", 24), Encoding("wav", 32))
"""One for each kind of samples that files are made of."""


def warm() -> None:
    """Call every inner loop with every kind of array."""
    decode(bytes(6 * FRAMES), PcmLayout("WAV", "PCM_24", False, RATE, 2, 0, FRAMES))
    for channels in (1, 2):
        window = np.zeros((FRAMES, channels), np.int32)
        for block in _blocks():
            stretch = window[: len(block)]
            add_to_bus(stretch, block, Clip(), BITS, None)
            add_to_bus(stretch, block, Clip(left=0.5, right=0.5), BITS, None)
        for samples in _writable_or_not(window):
            LoudnessMeter(RATE, channels, 2.0**BITS).add(samples)
            for encoding in ENCODINGS:
                _write(samples, encoding)


def _blocks() -> Iterator[Block]:
    """Samples as decoders hand them on; what is read by byte range cannot be written to. One
    frame alone lies in memory in another way than many."""
    for dtype, channels, frames in product((np.int16, np.float32), (1, 2), (1, FRAMES)):
        yield from _writable_or_not(np.zeros((frames, channels), dtype))


def _writable_or_not(samples: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Windows from Ray's object store cannot be written to."""
    yield samples
    fixed = samples.copy()
    fixed.flags.writeable = False
    yield fixed


def _write(samples: NDArray[np.int32], encoding: Encoding) -> None:
    with tempfile.TemporaryFile() as file:
        writer = MixWriter(
            file.fileno(),
            encoding,
            sample_rate=RATE,
            channels=samples.shape[1],
            frames=len(samples),
            factor=2.0**-BITS,
            num_peaks=10,
        )
        writer.add(samples)
        writer.finish()


if __name__ == "__main__":
    warm()
