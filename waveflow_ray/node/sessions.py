"""Processes that belong together: all of one session, whoever their parents are.

Ray's processes outlive the `ray start` that made them, but they stay in its session. So they can
be ended without touching what else runs on the machine, which `ray stop` would.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

GRACE_S = 10.0


def start_session(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command as the leader of a new session, which has its pid for a name."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def members(session: int) -> list[psutil.Process]:
    """The processes of a session that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) == session:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def end_session(session: int) -> None:
    """End its processes: asked first, killed after a while."""
    left = members(session)
    for process in left:
        _signal(process, kill=False)
    _, left = psutil.wait_procs(left, GRACE_S)
    for process in {*left, *members(session)}:
        _signal(process, kill=True)
    psutil.wait_procs(left, GRACE_S)


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.Error:
        pass
