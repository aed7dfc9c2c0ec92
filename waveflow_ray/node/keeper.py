"""Keeps Ray running on this machine, and on the head the service, until it is told to end.

`ray up` starts it on every node. It lives beside Ray, not in it: when Ray's processes die, it
starts them again, and when the head is back, the service with it. It needs nothing that was in
memory, as the queue has all jobs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from waveflow_ray.node.sessions import end_session, start_session
from waveflow_ray.node.spot import Metadata
from waveflow_ray.runtime.environment import ray_environment
from waveflow_ray.settings import NodeSettings

LOOK_S = 1.0
METADATA_LOOK_S = 5.0
AGAIN_S = 2.0
SERVICE_AGAIN_S = 20.0
RAY_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 180
STARTED = "Ray runtime started"
"""What `ray start` prints when it is up."""

WAVEFLOW = (sys.executable, "-m", "waveflow_ray")


@dataclass(frozen=True)
class Place:
    """The folder in which Ray and the service are started; a `.env` there is read."""

    folder: Path

    @property
    def pids(self) -> Path:
        """Pid of the keeper, and session of the Ray that it started."""
        return self.folder / "node.pid"

    @property
    def log(self) -> Path:
        """What the keeper, `ray start` and `waveflow start` print."""
        return self.folder / "node.log"

    @property
    def release(self) -> Path:
        """A link to a folder with the package, newer than what is installed; or nothing."""
        return self.folder / "current"


class Keeper:
    """Starts Ray on this machine and looks after it.

    Args:
        ray_arguments: of `ray start`.
        place: its files.
        tell: is told how the start went: nothing if well, else why not.
        metadata: asked for a spot notice; not on the head, which is no spot instance.
    """

    def __init__(
        self,
        ray_arguments: Sequence[str],
        place: Place,
        tell: Callable[[str], None],
        metadata: Metadata,
    ) -> None:
        self._is_head = "--head" in ray_arguments
        self._command = [_beside_python("ray"), "start", *ray_arguments, "--block"]
        self._place = place
        self._tell = tell
        self._metadata = None if self._is_head else metadata
        self._ray: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._service_at = 0.0  # when to start the service; infinity: it runs
        self._look_at = 0.0

    def run(self) -> None:
        """Until SIGTERM or SIGINT, or until AWS takes the instance away."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
        try:
            while True:
                self._start_ray()
                while self._ray_lives():
                    self._look_after()
                    time.sleep(LOOK_S)
                self._end_ray()  # nothing that is left may hold a port
                self._say("Ray ended; it is started again")
                time.sleep(AGAIN_S)
        finally:
            self._end_ray()
            self._place.pids.unlink(missing_ok=True)

    def _start_ray(self) -> None:
        self._log_start = self._place.log.stat().st_size if self._place.log.exists() else 0
        self._ray = start_session(self._command, self._place.log)
        self._place.pids.write_text(f"{os.getpid()} {self._ray.pid} {_era()}\n")
        self._service_at = 0.0
        deadline = time.monotonic() + RAY_TIMEOUT_S
        while STARTED not in self._printed():
            if not self._ray_lives() or time.monotonic() > deadline:
                self._tell(f"Ray did not start:\n{self._printed()[-1500:]}")
                self._end_ray()
                return
            time.sleep(LOOK_S)
        self._say("Ray is up")
        if not self._is_head:
            self._tell("")

    def _look_after(self) -> None:
        now = time.monotonic()
        if self._is_head and now >= self._service_at:
            trouble = self._start_service()
            self._service_at = now + SERVICE_AGAIN_S if trouble else float("inf")
            self._tell(trouble)
        if self._metadata is not None and now >= self._look_at:
            self._look_at = now + METADATA_LOOK_S
            if (left_s := self._metadata.seconds_left()) is not None:
                self._say(f"AWS takes this instance away in {left_s:.0f} s")
                drained = self._waveflow("node", "drain", "--deadline", str(int(left_s)))
                if drained.returncode == 0:  # else again: the head may be restarting
                    self._metadata = None

    def _ray_lives(self) -> bool:
        """`ray start --block` ends when one of Ray's processes dies."""
        return self._ray is not None and self._ray.poll() is None

    def _end_ray(self) -> None:
        if self._ray is not None:
            end_session(self._ray.pid)
            self._ray.wait()

    def _start_service(self) -> str:
        """Why it did not start, if so."""
        command = ["start", "--if-stopped"]
        if self._place.release.exists():
            command += ["--send-code"]
        done = self._waveflow(*command)
        if done.returncode == 0:
            return ""
        return f"Ray runs, but the service does not:\n{done.stdout.strip()}"

    def _waveflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        code = {"PYTHONPATH": str(self._place.release)} if self._place.release.exists() else {}
        # A Ray that dies meanwhile may never answer it.
        command = ["timeout", "--kill-after=10", str(COMMAND_TIMEOUT_S), *WAVEFLOW, *arguments]
        done = subprocess.run(
            command,
            env=os.environ | code,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self._say(f"waveflow {' '.join(arguments)}: {done.stdout.strip()}")
        return done

    def _printed(self) -> str:
        """What Ray printed since it was started last."""
        with self._place.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _say(self, line: str) -> None:
        with self._place.log.open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n")


def prepare(place: Place, settings: NodeSettings) -> None:
    """Make this process's folder and environment those of the node's Ray and service.

    The reporters, which are on the head, take the webhook secrets from there.
    """
    os.chdir(place.folder)
    ray = ray_environment(os.cpu_count() or 1, settings.reporters + 1)
    for name, value in (ray | settings.variables).items():
        os.environ.setdefault(name, value)


def end(place: Place) -> bool:
    """End the keeper of this machine and its Ray, whichever of them is alive. False if none is."""
    try:
        first, second, era = place.pids.read_text().split()
        keeper, session = int(first), int(second)
    except (OSError, ValueError):
        return False
    if era != _era():
        return False
    with suppress(psutil.Error):
        process = psutil.Process(keeper)
        if "waveflow" in " ".join(process.cmdline()):  # else the pid is another's by now
            process.terminate()
            process.wait(60)
    end_session(session)
    place.pids.unlink(missing_ok=True)
    return True


def _leave(_number: int, _frame: Any) -> None:
    raise SystemExit(0)


def _era() -> str:
    """Differs after a restart of the machine or its container: pids mean something else then."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"


def _beside_python(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
