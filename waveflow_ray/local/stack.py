"""The whole platform on one machine: S3, SQS, a main server, Ray, the service."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from waveflow_ray.aws.clients import sqs_client
from waveflow_ray.aws.sqs import Queue, queue_of
from waveflow_ray.local.aws import LOOPBACK, REGION, LocalAws
from waveflow_ray.local.server import MainServer
from waveflow_ray.runtime import app
from waveflow_ray.runtime.handles import Service
from waveflow_ray.settings import Settings, load_settings

LOCAL_POLL_S = 2
"""Long polls are answered by one moto process here; short ones keep Ctrl-C quick."""


@dataclass(frozen=True)
class Stack:
    """What runs: settings that reach it, the queue, the server, the service, the dashboard."""

    settings: Settings
    queue: Queue
    server: MainServer
    service: Service
    dashboard: str
    env: dict[str, str]


@contextmanager
def neighbours(
    receiver_port: int = 0,
    aws_port: int = 0,
    journal: Path | None = None,
    host: str = LOOPBACK,
) -> Iterator[tuple[LocalAws, MainServer]]:
    """Start what the service talks to: S3 and SQS, and a main server; on leaving, end them."""
    with LocalAws(aws_port, host) as aws:
        queue = Queue(sqs_client(REGION, aws.endpoint), aws.queue_url)
        with MainServer(queue.send, journal, receiver_port, host) as server:
            yield aws, server


@contextmanager
def local_stack(
    *,
    receiver_port: int = 0,
    aws_port: int = 0,
    webhook_url: str | None = None,
    journal: Path | None = None,
    num_cpus: int | None = None,
    **overrides: Any,
) -> Iterator[Stack]:
    """Start everything; on leaving, end everything.

    Args:
        webhook_url: webhooks go there instead of to the built-in server.
        overrides: settings, by field name.
    """
    with ExitStack() as cleanup:
        aws, server = cleanup.enter_context(neighbours(receiver_port, aws_port, journal))
        settings = load_settings(
            _env_file=None,
            aws_endpoint_url=aws.endpoint,
            aws_region=REGION,
            s3_bucket_name=aws.env["S3_BUCKET_NAME"],
            sqs_queue_url=aws.queue_url,
            webhook_url=webhook_url or server.url,
            **({"poll_wait_s": LOCAL_POLL_S} | overrides),
        )
        cleanup.callback(ray.shutdown)
        dashboard = app.connect(settings, may_start=True, num_cpus=num_cpus)
        service = app.start(settings, detached=False)
        env = aws.env | {"WEBHOOK_URL": settings.webhook_url}
        yield Stack(settings, queue_of(settings), server, service, dashboard, env)


def run_local(
    receiver_port: int,
    aws_port: int,
    webhook_url: str | None,
    journal: Path,
    num_cpus: int | None,
) -> None:
    """`waveflow local`: print how to reach it, then log lines, until a signal."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    print("Starting S3, SQS, the main server and Ray …", flush=True)
    with local_stack(
        receiver_port=receiver_port,
        aws_port=aws_port,
        webhook_url=webhook_url,
        journal=journal,
        num_cpus=num_cpus,
    ) as stack:
        print("\nPoint a NestJS server, or this shell, at it:\n")
        for name, value in stack.env.items():
            print(f"export {name}={value}")
        print(f"\nWebhooks are written to {journal}")
        print(app.dashboard_line(stack.dashboard))
        print("Try: aws s3 cp drums.wav s3://$S3_BUCKET_NAME/songs/drums.wav")
        print("     waveflow enqueue hash songs/drums.wav --stage-id my-stage")
        print("Ctrl-C drains and ends it.\n", flush=True)
        app.run_until_signal(stack.service, stack.settings, lambda line: print(line, flush=True))


def run_neighbours(receiver_port: int, aws_port: int, host: str, journal: Path) -> None:
    """`waveflow local --no-service`: what a service elsewhere talks to, until a signal."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with neighbours(receiver_port, aws_port, journal, host) as (aws, server):
        for name, value in (aws.env | {"WEBHOOK_URL": server.url}).items():
            print(f"export {name}={value}")
        print(f"Webhooks are written to {journal}", flush=True)
        ended.wait()
