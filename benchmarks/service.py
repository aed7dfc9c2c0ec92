"""The whole service to measure: any S3 and SQS, a server that takes webhooks, Ray here."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from waveflow_ray.aws.clients import s3_client, sqs_client
from waveflow_ray.aws.s3 import Bucket
from waveflow_ray.aws.sqs import Queue
from waveflow_ray.local.aws import REGION, LocalAws
from waveflow_ray.local.server import MainServer
from waveflow_ray.messages import Job, MixJob, envelope
from waveflow_ray.runtime import app
from waveflow_ray.runtime.handles import Service
from waveflow_ray.settings import Settings, load_settings

TIMEOUT_S = 3600.0


@dataclass
class Running:
    """What runs, and how to use it."""

    bucket: Bucket
    queue: Queue
    server: MainServer
    service: Service
    backend: str
    ready_s: float
    """From a Ray that runs to a queue that is polled."""

    def upload(self, paths: list[Path]) -> list[str]:
        """Put files into the bucket, once; returns their keys."""
        keys = [f"bench/{path.name}" for path in paths]
        for path, key in zip(paths, keys, strict=True):
            if not self.bucket.exists(key):
                self.bucket.client.upload_file(str(path), self.bucket.name, key)
        return keys

    def job(self, kind: type[Job], id_field: str, value: str, **fields: Any) -> dict[str, Any]:
        """Send a job, wait for its webhook, and return that.

        Args:
            id_field, value: what tells it from others, in the job and in the webhook.
        """
        self.queue.send(envelope(kind, f"job-{value}", **{id_field: value}, **fields))
        deadline = time.monotonic() + TIMEOUT_S
        seen = 0
        while time.monotonic() < deadline:
            received = self.server.received
            for report in received[seen:]:
                if report.payload.get(id_field) == value:
                    return report.payload
            seen = len(received)
            time.sleep(0.002)
        raise TimeoutError(f"no webhook for {value} within {TIMEOUT_S:g} s")

    def mix(self, keys: list[str], **fields: Any) -> dict[str, Any]:
        """Have a mix made; its webhook."""
        given = fields if "stems" in fields else fields | {"stem_paths": keys}
        return self.job(MixJob, "stageId", uuid.uuid4().hex, **given)

    def log_of(self, stage_id: str) -> dict[str, Any]:
        """The log line of a mix job."""
        for _ in range(100):
            _, lines = ray.get(self.service.ingress.log_lines.remote(0))
            for line in lines:
                fields = json.loads(line)
                if fields.get("stageId") == stage_id and "outcome" in fields:
                    return dict(fields)
            time.sleep(0.1)
        raise LookupError(stage_id)

    def object_store_bytes(self) -> int:
        """Bytes of objects in the object store now."""
        address = ray.get_runtime_context().gcs_address
        reply = get_memory_info_reply(get_state_from_address(address))
        return int(reply.store_stats.object_store_bytes_used)


@dataclass
class Store:
    """S3 and SQS to measure with: a bucket and queues of the run's own."""

    endpoint: str
    name: str
    backend: str

    @property
    def bucket(self) -> Bucket:
        return Bucket(s3_client(REGION, self.endpoint), self.name)

    def queue(self, name: str) -> Queue:
        """A new queue."""
        sqs = sqs_client(REGION, self.endpoint)
        return Queue(sqs, sqs.create_queue(QueueName=f"{self.name}-{name}")["QueueUrl"])

    def settings(self, queue_url: str, webhook_url: str, **overrides: Any) -> Settings:
        """Of a service that works here."""
        return load_settings(
            _env_file=None,
            aws_endpoint_url=self.endpoint,
            aws_region=REGION,
            s3_bucket_name=self.name,
            sqs_queue_url=queue_url,
            webhook_url=webhook_url,
            **overrides,
        )


@contextmanager
def store() -> Iterator[Store]:
    """S3 and SQS of AWS_ENDPOINT_URL, else moto."""
    with ExitStack() as stack:
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        backend = "AWS_ENDPOINT_URL"
        if not endpoint:
            endpoint, backend = stack.enter_context(LocalAws()).endpoint, "moto"
        name = f"bench-{uuid.uuid4().hex[:8]}"
        s3_client(REGION, endpoint).create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        yield Store(endpoint, name, backend)


@contextmanager
def running(num_cpus: int, **overrides: Any) -> Iterator[Running]:
    """The service on this machine. S3 and SQS are those of AWS_ENDPOINT_URL, else moto."""
    with ExitStack() as stack:
        aws = stack.enter_context(store())
        queue = aws.queue("jobs")
        server = stack.enter_context(MainServer(queue.send))
        settings = aws.settings(
            queue.url, server.url, log_format="json", poll_wait_s=2, **overrides
        )
        stack.callback(ray.shutdown)
        app.connect(settings, may_start=True, num_cpus=num_cpus)
        started = time.monotonic()
        service = app.start(settings, detached=False)
        ready_s = time.monotonic() - started
        yield Running(aws.bucket, queue, server, service, aws.backend, ready_s)


@dataclass
class MemoryWatch:
    """Samples what the processes below this one hold. ``with MemoryWatch(…) as watch``.

    Attributes:
        peak_mb: of each process by pid: its largest own memory (resident, without the object
            store, which all map).
        object_store_mb: the largest amount of objects in the store.
    """

    running: Running
    every_s: float = 0.2
    peak_mb: dict[int, float] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    object_store_mb: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> None:
        """Look once."""
        for process in psutil.Process().children(recursive=True):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                fields = dict(line.split(":\t", 1) for line in status.splitlines())
                own = sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
                self.names[process.pid] = " ".join(process.cmdline())[:40]
            except (OSError, KeyError, ValueError, psutil.Error):
                continue
            self.peak_mb[process.pid] = max(self.peak_mb.get(process.pid, 0.0), own / 1024)
        used = self.running.object_store_bytes() / 2**20
        self.object_store_mb = max(self.object_store_mb, used)

    def _watch(self) -> None:
        while not self._stop.wait(self.every_s):
            self.sample()
