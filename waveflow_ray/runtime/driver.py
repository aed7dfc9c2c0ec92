"""The driver of a service that `waveflow start` leaves running: the process Ray calls its job.

Ray ends the idle workers of a job whose driver is gone, at once and whatever the limits. Every job
that comes after a pause would then start a process, some seconds of CPU. So the driver stays as
long as the service. If it is killed, the service goes on, but slower; `waveflow status` says so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray

from waveflow_ray.runtime.handles import Service

LOOK_S = 5.0
ANSWER_S = 30.0
"""An ingress that is started again or very busy may take so long."""
STARTED = b"ok"


def start_driver(arguments: Sequence[str]) -> int:
    """Run ``waveflow start`` with these arguments in a process of its own; returns when it is up.

    What it prints goes where this process prints.

    Returns:
        its exit code; 0 if it stays.
    """
    reader, writer = os.pipe()
    driver = subprocess.Popen(
        [sys.executable, "-P", "-m", "waveflow_ray", "start", *arguments, "--stay", str(writer)],
        stdin=subprocess.DEVNULL,
        pass_fds=[writer],
        start_new_session=True,  # the terminal may go
    )
    os.close(writer)
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        with os.fdopen(reader, "rb") as answer:
            return 0 if answer.read() == STARTED else driver.wait()
    except BaseException:
        driver.kill()
        driver.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def stay(service: Service, writer: int) -> None:
    """Tell who waits that the service is up, then live as long as it does.

    Args:
        writer: the descriptor that `start_driver` gave.
    """
    _lives(service)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)  # whoever reads what this printed waits for its end
    with suppress(BrokenPipeError):
        os.write(writer, STARTED)
    os.close(writer)
    while _lives(service):
        time.sleep(LOOK_S)


def _lives(service: Service) -> bool:
    held: Any = service.ingress.held.options(enable_task_events=False)
    try:
        ray.get(held.remote(), timeout=ANSWER_S)
    except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
        return True  # Ray starts it again
    except ray.exceptions.RayError:
        return False
    return True
