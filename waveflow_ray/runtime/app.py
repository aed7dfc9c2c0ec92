"""Wiring: connect to Ray, start the actors, run until told to stop, drain.

Commands like `waveflow status` need no more than this imports; `resolve` and `start` import more.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from types import FrameType
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,  # what `ray start` does; no public way to it
)
from ray._private.services import canonicalize_bootstrap_address  # what `ray.init` does; likewise

from waveflow_ray.errors import ConfigurationError, JobError
from waveflow_ray.release import PACKAGE
from waveflow_ray.runtime.environment import ray_environment
from waveflow_ray.runtime.handles import Service, find_actors
from waveflow_ray.settings import Settings

CONNECT_TIMEOUT_S = 5.0
LOG_WAIT_S = 5.0
SIGNAL_LOOK_S = 0.2
READY_TIMEOUT_S = 60.0
WARM_UP_TIMEOUT_S = 120.0
STATUS_TIMEOUT_S = 30.0
POLL_MARGIN_S = 45.0
"""A drain also waits for the last poll of the queue and for deletes."""

Print = Callable[[str], None]


class ServiceError(Exception):
    """The service cannot start, or is not there; the text says why and what to do."""


def resolve(settings: Settings) -> Settings:
    """Check queue and bucket before anything starts; settings with the queue's URL filled in.

    Raises:
        ConfigurationError: they do not exist or cannot be reached; names the variable.
    """
    from waveflow_ray.aws.s3 import bucket_of
    from waveflow_ray.aws.sqs import QueueError, queue_of

    try:
        queue = queue_of(settings)
        queue.facts()
    except QueueError as error:
        name = "SQS_QUEUE_URL" if settings.sqs_queue_url else "SQS_QUEUE_NAME"
        raise ConfigurationError(
            f"{name}: the queue does not answer; check the name, AWS_REGION, AWS_ENDPOINT_URL and "
            f"the credentials ({error})"
        ) from error
    try:
        bucket_of(settings).reachable()
    except JobError as error:
        raise ConfigurationError(
            f"S3_BUCKET_NAME={settings.s3_bucket_name}: the bucket does not answer; check the "
            f"name, AWS_REGION, AWS_ENDPOINT_URL and the credentials ({error.detail})"
        ) from error
    return settings.model_copy(update={"sqs_queue_url": queue.url})


def connect(
    settings: Settings, *, may_start: bool, num_cpus: int | None = None, send_code: bool = False
) -> str:
    """Join the Ray cluster of RAY_ADDRESS, or the one on this machine, or start one here.

    Args:
        may_start: without RAY_ADDRESS, start Ray in this process instead of looking for it.
        num_cpus: CPUs of a Ray that is started; all of the machine's by default.
        send_code: what is started runs the code of this process on every node, instead of what is
            installed there.

    Returns:
        The dashboard's address, empty if there is none.

    Raises:
        ServiceError: there is no cluster to join.
    """
    if settings.ray_address or not may_start:
        return join(settings.ray_address or "auto", send_code=send_code)
    os.environ.pop("RAY_ADDRESS", None)
    cpus = num_cpus or os.cpu_count() or 1
    for name, value in ray_environment(cpus, settings.reporters + 1).items():
        os.environ.setdefault(name, value)
    os.environ.update(settings.variables)  # a `.env` is not in the reporters' environment
    return _init(
        address="local",  # also where another cluster runs on this machine
        num_cpus=num_cpus,
        include_dashboard=settings.dashboard,
        dashboard_host="127.0.0.1",
        dashboard_port=settings.dashboard_port,
    )


def join(address: str, *, send_code: bool = False) -> str:
    """Join a running cluster; see `connect`.

    Args:
        address: host and port, or "auto" for the one on this machine.

    Raises:
        ServiceError: there is none, or it does not answer.
    """
    try:
        address = _answering(address)
    except OSError as error:
        raise _no_cluster(error) from error
    # A cluster that `ray.init` started asks for a token; show it if there is one.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    if not send_code:
        return _init(address=address)
    # Workers look for code in the folder of this process first, even before that which was sent.
    with chdir("/"):
        return _init(address=address, runtime_env={"py_modules": [str(PACKAGE)]})


def _answering(address: str) -> str:
    """Host and port of a cluster that takes connections. Ray itself would try for minutes.

    Raises:
        OSError: there is none. One that was killed is still written down in Ray's folder.
    """
    found = canonicalize_bootstrap_address(address) or address
    host, _, port = found.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise ConnectionError(f"{found} does not answer: {error}") from error
    return found


def messages_to_stderr() -> None:
    """Have Ray print what its nodes tell the driver to stderr: stdout is for ours, and for JSON."""
    worker = ray._private.worker  # Ray has no setting for it
    show = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, **how: show({**data, "is_err": True}, **how)


def _init(**options: Any) -> str:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    messages_to_stderr()
    try:
        context = ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError as error:
        raise _no_cluster(error) from error
    url = context.dashboard_url
    return f"http://{url}" if url else ""


def _no_cluster(error: OSError) -> ServiceError:
    return ServiceError(
        "There is no Ray cluster to join. Start one with `ray start --head`, name one in "
        f"RAY_ADDRESS, or use `waveflow run`. ({error})"
    )


def dashboard_line(url: str) -> str:
    """Where the Ray dashboard is, for people."""
    return f"Ray dashboard: {url} (`ray get-auth-token` prints the token it asks for)"


def start(settings: Settings, *, detached: bool, replace: bool = False) -> Service:
    """Start the actors and wait until the queue is being polled.

    Args:
        detached: the service stays when this process ends.
        replace: take over from a service that runs already. Until the new one has workers ready on
            all nodes, the old one goes on; then it ends its jobs. If that fails, it stays.

    Raises:
        ServiceError: the service runs on this cluster already, or does not come up.
        ConfigurationError: the reporters know other secrets.
    """
    from waveflow_ray.runtime.actors import start_actors

    timeout_s = READY_TIMEOUT_S
    old = find() if replace and runs() else None
    if old is not None:
        timeout_s += WARM_UP_TIMEOUT_S + settings.drain_timeout_s + POLL_MARGIN_S
    service = None
    try:
        service = start_actors(settings, detached=detached, replaces=old)
        ray.get(service.ingress.ready.remote(), timeout=timeout_s)
    except ValueError as error:
        raise ServiceError(
            "WaveFlow runs on this Ray cluster already; see `waveflow status`, end it with "
            "`waveflow stop`, or take over from it with `waveflow start --replace`."
        ) from error
    except ray.exceptions.RayError as error:
        if old is None or not _in_charge(old):
            raise ServiceError(f"The service did not come up: {error}") from error
        if service is not None:
            service.end()
        raise ServiceError(
            f"The new service did not come up, the old one goes on: {error}"
        ) from error
    return service


def _in_charge(service: Service) -> bool:
    try:
        return not status(service)["draining"]
    except ray.exceptions.RayError:
        return False


def runs() -> bool:
    """Whether there is a service on the connected cluster."""
    with suppress(ServiceError):
        find()
        return True
    return False


def find() -> Service:
    """The running service.

    Raises:
        ServiceError: it does not run on this cluster.
    """
    try:
        return find_actors()
    except ValueError as error:
        raise ServiceError(
            "WaveFlow does not run on this Ray cluster. Start it with `waveflow start`."
        ) from error


def status(service: Service) -> dict[str, Any]:
    """What is in hand, what was done, and the queue's depths; see `Ingress.status`."""
    state: dict[str, Any] = ray.get(service.ingress.status.remote(), timeout=STATUS_TIMEOUT_S)
    return state


def stop(service: Service, settings: Settings, timeout_s: float) -> dict[str, int]:
    """Drain, then end the actors. Returns how many jobs finished and were given back."""
    try:
        result: dict[str, int] = ray.get(
            service.ingress.drain.remote(timeout_s),
            timeout=timeout_s + settings.poll_wait_s + POLL_MARGIN_S,
        )
    finally:
        service.end()
    return result


def run_until_signal(service: Service, settings: Settings, print_line: Print) -> None:
    """Print the service's log lines until SIGTERM or SIGINT; then drain. A second signal kills."""
    number = 0
    draining: Any = None
    with _signals() as received:
        lines = _ask_for_lines(service, number, LOG_WAIT_S)
        while True:
            if received and draining is None:
                draining = service.ingress.drain.remote(settings.drain_timeout_s)
            if ray.wait([lines], timeout=SIGNAL_LOOK_S)[0]:
                number = _print_lines(service, lines, number, print_line)
                lines = _ask_for_lines(service, number, LOG_WAIT_S)
            if draining is not None and ray.wait([draining], timeout=0)[0]:
                _print_lines(service, _ask_for_lines(service, number, 0.0), number, print_line)
                _settle(draining, print_line)
                return


def _settle(draining: Any, print_line: Print) -> None:
    try:
        ray.get(draining)
    except ray.exceptions.RayError as error:
        # The ingress died while draining; what it held comes back when its leases end.
        print_line(f"drain was cut short: {error}")


def _ask_for_lines(service: Service, number: int, wait_s: float) -> Any:
    # Not shown in the dashboard's list of tasks: there it would only hide the jobs.
    method = service.ingress.log_lines.options(enable_task_events=False)
    return method.remote(number, wait_s)


def _print_lines(service: Service, answer: Any, number: int, print_line: Print) -> int:
    """Print what came; returns the number of the next line."""
    try:
        number, lines = ray.get(answer)
    except ray.exceptions.RayActorError:
        _check_alive(service.ingress)
        return 0  # Ray started it again; its lines count from 0 then
    for line in lines:
        print_line(line)
    return number


def _check_alive(ingress: Any) -> None:
    """A dead actor may be one that is being started again, or one that is not."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            ray.get(ingress.ready.remote(), timeout=max(0.0, deadline - time.monotonic()))
            return
        except ray.exceptions.ActorUnavailableError as error:
            # Its process is gone, and Ray has not noticed yet.
            if time.monotonic() > deadline:
                raise _gone(error) from error
            time.sleep(SIGNAL_LOOK_S)
        except ray.exceptions.RayError as error:
            raise _gone(error) from error


def _gone(error: Exception) -> ServiceError:
    return ServiceError(
        "The ingress actor is gone: `waveflow stop` ended it, or the cluster did. What it held "
        f"comes back when its leases end. ({type(error).__name__})"
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT; the second one ends the process at once."""
    received: list[int] = []

    def take(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)

    before = {s: signal.signal(s, take) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
