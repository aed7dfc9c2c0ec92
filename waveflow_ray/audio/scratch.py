"""Temporary files that nobody has to remember to delete."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path


def open_scratch(folder: Path) -> int:
    """Open a file without a name, for reading and writing; gone once closed, or with the process.

    Args:
        folder: where its bytes are kept; made if absent, for its owner only.

    Returns:
        The descriptor; closing it is up to the caller. Child processes do not inherit it.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not every file system (overlays, network shares) has anonymous files.
    with suppress(OSError, AttributeError):
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fd, name = tempfile.mkstemp(dir=folder)
    os.unlink(name)
    return fd


def sweep(folder: Path, older_than_s: float, now: float | None = None) -> list[Path]:
    """Remove plain files in a folder that were last changed longer ago than `older_than_s`.

    Not in folders within it, and nothing that a symbolic link points to. A folder that does not
    exist has nothing to remove.

    Args:
        older_than_s: age in seconds.
        now: in seconds since 1970; by default the time of day.

    Returns:
        What was removed, sorted.
    """
    limit = (time.time() if now is None else now) - older_than_s
    removed: list[Path] = []
    try:
        # O_NOFOLLOW: the folder itself may have been swapped for a link to another.
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return removed
    try:
        for name in sorted(os.listdir(folder_fd)):
            with suppress(FileNotFoundError, PermissionError):
                entry = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
                if stat.S_ISREG(entry.st_mode) and entry.st_mtime < limit:
                    os.unlink(name, dir_fd=folder_fd)
                    removed.append(folder / name)
    finally:
        os.close(folder_fd)
    return removed
