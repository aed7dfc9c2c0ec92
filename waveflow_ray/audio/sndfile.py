"""soundfile, fitted to reading and writing once from start to end."""

from __future__ import annotations

import io
import os
from typing import Any

import soundfile


class SequentialFile(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that does not seek after every read.

    soundfile does so to keep one position for reading and writing. In compressed formats it
    costs a third of the time, and limits reading to the length that the header claims.
    """

    def seekable(self) -> bool:
        return False


class UnsyncedFile(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that does not wait for the disk when closed: nothing here has to survive a
    power cut, and on a cloud volume the wait is longer than the mix."""

    def flush(self) -> None:
        pass


class View(io.RawIOBase):
    """Some bytes, then a file from byte `start` on, as one file."""

    def __init__(self, fd: int, prefix: bytes, start: int) -> None:
        self._fd, self._prefix, self._start, self._at = fd, prefix, start, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = len(self._prefix) + os.fstat(self._fd).st_size - self._start
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        head = self._prefix[self._at : self._at + len(view)]
        view[: len(head)] = head
        # A short read would mean the end to libsndfile.
        behind = self._start + max(0, self._at - len(self._prefix))
        count = len(head)
        if count < len(view):
            count += os.preadv(self._fd, [view[count:]], behind)
        self._at += count
        return count
