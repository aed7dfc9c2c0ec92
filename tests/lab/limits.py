"""Memory limits for the lab's hosts, by cgroups of either version."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

C7I_LARGE = int(3.8 * 2**30)
"""Bytes that Linux has on a machine of 4 GiB."""
MOUNTED = Path("/sys/fs/cgroup")


class MemoryLimits:
    """A group for the lab, and one in it for each host.

    Args:
        name: of the lab's group.
    """

    def __init__(self, name: str) -> None:
        self.version, parent = _controller()
        self._group = parent / name if parent else None

    @property
    def why_none(self) -> str:
        """Why hosts have no limit; empty if they have one."""
        if self._group is None:
            return "no memory controller can be used: the hosts have no memory limit"
        return ""

    @property
    def seen(self) -> str:
        """Where a host sees its own group."""
        return str(MOUNTED / "memory") if self.version == 1 else str(MOUNTED)

    def make(self, host: str, limit: int = C7I_LARGE) -> Path | None:
        """A group with a limit in bytes; None where there can be none."""
        if self._group is None:
            return None
        group = self._group / host
        if not self._group.exists():
            self._group.mkdir()
            if self.version == 2:
                (self._group / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        if self.version == 1:
            (group / "memory.limit_in_bytes").write_text(str(limit))
        else:
            (group / "memory.max").write_text(str(limit))
            with contextlib.suppress(OSError):  # a kernel without swap has no such file
                (group / "memory.swap.max").write_text("0")
        return group

    def remove(self, host: str = "", timeout_s: float = 5.0) -> None:
        """Remove a host's group, or all of the lab's; their processes have ended."""
        if self._group is None or not (self._group / host).exists():
            return
        groups = [self._group / host] if host else [*self._group.glob("*/"), self._group]
        deadline = time.monotonic() + timeout_s
        for group in groups:
            while group.exists():
                try:
                    group.rmdir()
                except OSError:  # the kernel is not done with its last process
                    if time.monotonic() > deadline:
                        return
                    time.sleep(0.05)


def _controller() -> tuple[int, Path | None]:
    """Version of the memory controller, and a group in which groups can be made."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.lstrip("/")
    if (MOUNTED / "memory").is_dir():
        inner = MOUNTED / "memory" / own.get("memory", "")
        parent = inner if inner.is_dir() else MOUNTED / "memory"
        return 1, parent if _writable(parent) else None
    # Below the root, a group with processes cannot pass the controller on; so groups of the root.
    try:
        control = MOUNTED / "cgroup.subtree_control"
        if "memory" not in control.read_text().split():
            control.write_text("+memory")
    except OSError:
        return 2, None
    return 2, MOUNTED if _writable(MOUNTED) else None


def _writable(parent: Path) -> bool:
    probe = parent / "waveflow-lab-probe"
    try:
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError:
        return False
    return True
