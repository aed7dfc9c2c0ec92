"""S3 and SQS on this machine: moto's server as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import Final, Self

from waveflow_ray.aws.clients import s3_client, sqs_client

REGION: Final = "ap-northeast-2"
BUCKET = "waveflow-local"
QUEUE = "waveflow-jobs"
DEAD_LETTERS = "waveflow-jobs-dead"
MAX_RECEIVES = 10
START_TIMEOUT_S = 30.0
LOOPBACK = "127.0.0.1"


class LocalAws:
    """A moto server with a bucket, a queue and its dead-letter queue.

    ``with LocalAws() as aws`` sets the AWS variables of this process, so that everything it
    starts (Ray's workers too) talks to the server.

    Args:
        port: 0 takes a free one; `endpoint` tells.
        host: the address to listen on.
    """

    def __init__(self, port: int = 0, host: str = LOOPBACK) -> None:
        self.host = host
        self.port = port or free_port()
        self.endpoint = f"http://{LOOPBACK}:{self.port}"
        self.queue_url = ""
        self.dlq_url = ""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        """The variables that point a service, or a NestJS server, at this machine."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "S3_BUCKET_NAME": BUCKET,
            "SQS_QUEUE_URL": self.queue_url,
        }

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", self.host, "-p", str(self.port)],
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the service, which still needs the queue
        )
        try:
            self._wait()
            for name, value in self.env.items():
                if name.startswith("AWS_"):
                    os.environ[name] = value
            self._create()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server; what it held is gone."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._log.close()

    def log_text(self) -> str:
        """What the server logged: a line per request."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=2).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.05)
        raise RuntimeError(f"moto's server did not start: {self.log_text()[-2000:]}")

    def _create(self) -> None:
        s3_client(REGION, self.endpoint).create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        sqs = sqs_client(REGION, self.endpoint)
        self.dlq_url = sqs.create_queue(QueueName=DEAD_LETTERS)["QueueUrl"]
        arn = f"arn:aws:sqs:{REGION}:123456789012:{DEAD_LETTERS}"
        policy = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": {MAX_RECEIVES}}}'
        self.queue_url = sqs.create_queue(
            QueueName=QUEUE, Attributes={"RedrivePolicy": policy, "VisibilityTimeout": "90"}
        )["QueueUrl"]


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
