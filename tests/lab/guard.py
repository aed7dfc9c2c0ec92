"""Starts the lab's namespaces and cleans up after them, whatever becomes of the tests.

`python -m tests.lab.guard FOLDER`: the lab lives as long as this process's standard input is
open, and the test process holds the other end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.lab.limits import MemoryLimits

UNSHARE = ("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
PR_SET_PDEATHSIG = 1


def main(folder: Path) -> None:
    with (folder / "out/inside.log").open("wb") as log:
        outer = subprocess.Popen(
            [*UNSHARE, "bash", Path(__file__).with_name("inside.sh")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_parent,
        )
    init = only_child(outer.pid)
    (folder / "out/pid").write_text(str(init))
    threading.Thread(target=_kill_when_left, args=(init,), daemon=True).start()
    outer.wait()  # which waits for pid 1 of the lab, and that for all its processes
    MemoryLimits(folder.name).remove()
    shutil.rmtree(folder, ignore_errors=True)


def only_child(pid: int, timeout_s: float = 20.0) -> int:
    """The process that `unshare --fork` starts as pid 1 of the new namespace."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise RuntimeError("unshare started nothing")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_when_left(init: int) -> None:
    sys.stdin.buffer.read()
    with contextlib.suppress(ProcessLookupError):
        os.kill(init, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
