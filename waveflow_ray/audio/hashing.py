"""The identity of a file: SHA-256 of its raw bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

BUFFER_BYTES = 1 << 20


def hash_file(path: str | Path) -> tuple[str, int]:
    """SHA-256 of a file in lower-case hex, and its size in bytes; memory is one buffer.

    Raises:
        OSError: the file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            size += count
    return digest.hexdigest(), size
