"""What the slower tests share: audio to work on, a main server that can fail, the service."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile as sf

from waveflow_ray import __version__
from waveflow_ray.aws.clients import s3_client, sqs_client
from waveflow_ray.aws.s3 import Bucket
from waveflow_ray.aws.sqs import Queue
from waveflow_ray.local.aws import BUCKET, REGION, LocalAws
from waveflow_ray.release import PACKAGE
from waveflow_ray.runtime.environment import ray_environment

HEAD = """
import sys
import ray
context = ray.init(
    num_cpus=2, include_dashboard=bool(int(sys.argv[1])), dashboard_port=0, logging_level="ERROR"
)
print(context.address_info["gcs_address"], flush=True)
input()
"""

WAVEFLOW = str(Path(sys.executable).with_name("waveflow"))


def music(seconds: float, rate: int = 44100, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Float64 (frames, channels) of a chord with noise: compresses like music does."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    chord = sum(np.sin(2 * np.pi * f * t) for f in (110 * (1 + seed % 5), 165.0, 220.7))
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * 0.5 * t)
    tracks = [0.2 * chord * envelope + 0.02 * rng.standard_normal(len(t)) for _ in range(channels)]
    return np.stack(tracks, axis=1)


def encoded(samples: np.ndarray, rate: int = 44100, **how: Any) -> bytes:
    """Samples as a file, e.g. ``format="FLAC"``; WAV PCM 16 by default."""
    buffer = io.BytesIO()
    options = {"format": "WAV", "subtype": "PCM_16"} | how
    if options["format"] in ("MP3", "OGG"):
        del options["subtype"]
    with sf.SoundFile(buffer, "w", rate, samples.shape[1], **options) as file:
        for start in range(0, len(samples), 65536):
            file.write(samples[start : start + 65536])
    return buffer.getvalue()


def make_wheel(folder: Path, version: str) -> Path:
    """This code as a wheel of another version."""
    path = folder / f"waveflow_ray-{version}-py3-none-any.whl"
    info = f"waveflow_ray-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for file in PACKAGE.rglob("*"):
            if file.is_file() and file.suffix not in (".pyc", ".nbi", ".nbc"):
                name = file.relative_to(PACKAGE.parent)
                text = file.read_text(encoding="utf-8")
                if name.name == "__init__.py" and len(name.parts) == 2:
                    text = text.replace(f'"{__version__}"', f'"{version}"')
                archive.writestr(str(name), text)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: waveflow-ray\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@dataclass
class Received:
    """A webhook as it came: path, payload, raw body, headers, times (monotonic), our answer."""

    path: str
    payload: dict[str, Any]
    body: bytes
    headers: dict[str, str]
    started: float
    ended: float = 0.0
    status: int = 0

    @property
    def subject(self) -> str:
        return f"{self.payload.get('stemId')}/{self.payload.get('stageId')}"


@dataclass
class Receiver:
    """A main server whose answers the test decides.

    `answer` gets what came and returns (status, JSON body); it may sleep.
    """

    answer: Callable[[Received], tuple[int, dict[str, Any]]] = lambda _r: (201, {"ok": True})
    received: list[Received] = field(default_factory=list)
    url: str = ""
    page: int = 404
    """What a GET is answered."""

    @property
    def accepted(self) -> list[Received]:
        return [r for r in list(self.received) if 200 <= r.status < 300]

    def wait_for(self, count: int, timeout_s: float = 60.0) -> list[Received]:
        """Wait until `count` webhooks were accepted."""
        wait_until(lambda: len(self.accepted) >= count, timeout_s, lambda: self.summary())
        return self.accepted

    def summary(self) -> str:
        return "\n".join(f"{r.status} {r.path} {r.payload}"[:200] for r in self.received)

    def overlaps(self) -> list[tuple[Received, Received]]:
        """Pairs of webhooks of one subject that were in flight together."""
        pairs = []
        for i, a in enumerate(self.received):
            for b in self.received[i + 1 :]:
                if a.subject == b.subject and a.started < b.ended and b.started < a.ended:
                    pairs.append((a, b))
        return pairs


class PlainHandler(BaseHTTPRequestHandler):
    """Answers with a text, and logs nothing."""

    def answer(self, status: int, body: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], host: str = "127.0.0.1") -> Iterator[str]:
    """An HTTP server in threads, ended with the block; the value is its address."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a client that goes away in mid-answer is what some tests are about

    server = Server((host, 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def receiver(host: str = "127.0.0.1", **options: Any) -> Iterator[Receiver]:
    """A running `Receiver`, at an address of this machine."""
    state = Receiver(**options)

    class Handler(PlainHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            started = time.monotonic()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            got = Received(self.path, json.loads(body), body, headers, started)
            status, answer = state.answer(got)
            got.status = status
            got.ended = time.monotonic()
            state.received.append(got)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self.send_response(state.page)
            self.send_header("Location", "https://elsewhere.example/")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(Handler, host) as state.url:
        yield state


@dataclass
class World:
    """A bucket, a queue of the test's own with its dead-letter queue, and the variables."""

    aws: LocalAws
    bucket: Bucket
    queue: Queue
    dead_letters: Queue
    env: dict[str, str]

    def left(self) -> dict[str, int]:
        """Messages that are still somewhere."""
        facts, dead = self.queue.facts(), self.dead_letters.facts()
        return {
            "visible": facts.visible,
            "in_flight": facts.in_flight,
            "delayed": facts.delayed,
            "dead": dead.visible,
        }

    def puts(self, prefix: str) -> list[str]:
        """Every PUT of an object below `prefix`, from the server's own log: counts the work."""
        lines = self.aws.log_text().splitlines()
        return [line for line in lines if f"PUT /{self.bucket.name}/{prefix}" in line]


def make_world(aws: LocalAws, name: str, max_receives: int = 10) -> World:
    """A new queue on the running moto server; the bucket is shared."""
    sqs = sqs_client(REGION, aws.endpoint)
    dlq_url = sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
    arn = f"arn:aws:sqs:{REGION}:123456789012:{name}-dead"
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": max_receives})
    url = sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": policy})["QueueUrl"]
    return World(
        aws=aws,
        bucket=Bucket(s3_client(REGION, aws.endpoint), BUCKET),
        queue=Queue(sqs, url),
        dead_letters=Queue(sqs, dlq_url),
        env={**aws.env, "SQS_QUEUE_URL": url},
    )


def waveflow(*arguments: str, env: dict[str, str] | None = None, timeout_s: float = 120.0) -> str:
    """Run a command that must end well; returns what it printed."""
    done = subprocess.run(
        [WAVEFLOW, *arguments],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def ray_head(env: dict[str, str], *, dashboard: bool = False) -> Iterator[str]:
    """A Ray cluster of one node, set up as a node of ours; the value is its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(int(dashboard))],
        env=os.environ | ray_environment(cpus=2, actors=3) | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


class ServiceProcess:
    """`waveflow run` as a user runs it: a process with an environment, output and signals."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.log = folder / f"service-{time.monotonic_ns()}.log"
        settings = {
            "LOG_FORMAT": "json",
            "POLL_WAIT_S": "1",
            "VISIBILITY_TIMEOUT_S": "6",
            "WEBHOOK_PAUSE_S": "0.2",
            "WEBHOOK_MAX_PAUSE_S": "1",
            "RETRY_DELAY": "1",
            "SCRATCH_DIR": str(self.scratch),
            "DASHBOARD": "false",  # it takes as long to start as all else
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SQS_", "S3_"))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [WAVEFLOW, "run", "--num-cpus", "2"],
                env=clean | settings | env,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float = 90.0) -> ServiceProcess:
        wait_until(
            lambda: '"event": "ready"' in self.output() or self.process.poll() is not None,
            timeout_s,
            self.output,
        )
        assert self.process.poll() is None, self.output()
        return self

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log entries of that event."""
        entries = [json.loads(line) for line in self.output().splitlines() if line[:1] == "{"]
        return [entry for entry in entries if entry["event"] == name]

    def workers(self, title: str) -> list[psutil.Process]:
        """Ray processes whose title begins so, e.g. ``ray::analysis``."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_for_worker(self, title: str, timeout_s: float = 60.0) -> psutil.Process:
        wait_until(lambda: bool(self.workers(title)), timeout_s, self.output, pause_s=0.002)
        return self.workers(title)[0]

    def stop(self, timeout_s: float = 90.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """Whatever is left of it."""
        if self.process.poll() is None:
            tree = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
            for process in tree:
                try:
                    process.kill()
                except psutil.Error:
                    continue


@contextmanager
def service(env: dict[str, str], folder: Path) -> Iterator[ServiceProcess]:
    """A running service that is ended with the block."""
    process = ServiceProcess(env, folder)
    try:
        yield process.wait_ready()
    finally:
        process.end()


def wait_until(
    condition: Callable[[], bool],
    timeout_s: float,
    explain: Callable[[], str] = lambda: "",
    pause_s: float = 0.05,
) -> None:
    """Wait until it holds; fail with an explanation if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s\n{explain()[-6000:]}")
        time.sleep(pause_s)
