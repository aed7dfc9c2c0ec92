"""The head of a Ray cluster is lost, with all that ran there, and started again."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import WAVEFLOW, Received, World, encoded, music, receiver, wait_until, waveflow
from waveflow_ray.local.aws import free_port
from waveflow_ray.messages import AnalysisJob, HashJob, MixJob, envelope

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

RAY = str(Path(WAVEFLOW).with_name("ray"))
HASHES, ANALYSES, MIXES = 12, 6, 2
BEFORE = 3


class Gate:
    """Takes a few webhooks, and none after them: so the head dies in the middle of the work."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __call__(self, _: Received) -> tuple[int, dict[str, Any]]:
        return (201 if next(self._numbers) < BEFORE else 503, {"status": "success"})


class Head:
    """`ray start --head --block`, which can be killed with all its processes."""

    def __init__(self, folder: str, env: dict[str, str]) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.env = os.environ | env | {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        self.log = Path(folder) / "head.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
        ports = [f"--port={self.port}", f"--ray-client-server-port={free_port()}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    RAY,
                    "start",
                    "--head",
                    "--block",
                    "--node-ip-address=127.0.0.1",
                    *ports,
                    *options,
                ],
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started = self.log.read_text().count("Ray runtime started")
        wait_until(
            lambda: self.log.read_text().count("Ray runtime started") > started,
            60,
            self.log.read_text,
        )

    def kill(self) -> None:
        if self.process is None:
            return
        tree = [*psutil.Process(self.process.pid).children(recursive=True)]
        for process in (psutil.Process(self.process.pid), *tree):
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.wait()
        psutil.wait_procs(tree, 20)
        self.process = None


@contextmanager
def redis() -> Iterator[dict[str, str]]:
    """A Redis server; the variables by which Ray keeps its state there."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "with_redis", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "with Redis"]
)
def test_no_job_is_lost_with_the_head(world: World, tmp_path: Path, with_redis: bool) -> None:
    """Without Redis somebody starts the service again; with one Ray does. SQS keeps the jobs."""
    if with_redis and shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    for key, sound in (("head/a.wav", music(2.0)), ("head/b.wav", music(3.0, seed=1))):
        world.bucket.put(key, encoded(sound), "audio/wav")
    with ExitStack() as stack:
        main_server = stack.enter_context(receiver(answer=Gate()))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))
        common = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        if with_redis:
            common |= stack.enter_context(redis())
        env = world.env | common
        env |= {
            "WEBHOOK_URL": main_server.url,
            "POLL_WAIT_S": "1",
            "VISIBILITY_TIMEOUT_S": "6",
            "SCRATCH_DIR": str(tmp_path / "scratch"),
        }
        head = Head(folder, env)
        stack.callback(head.kill)
        head.start()
        env |= {"RAY_ADDRESS": head.address, "RAY_TMPDIR": folder}
        waveflow("start", env=env)
        for n in range(HASHES):
            world.queue.send(envelope(HashJob, f"h{n}", stemId=f"h{n}", filepath="head/a.wav"))
        for n in range(ANALYSES):
            world.queue.send(envelope(AnalysisJob, f"a{n}", stemId=f"a{n}", filepath="head/b.wav"))
        for n in range(MIXES):
            stems = ["head/a.wav", "head/b.wav"]
            world.queue.send(envelope(MixJob, f"m{n}", stageId=f"m{n}", stem_paths=stems))
        main_server.wait_for(BEFORE)
        head.kill()
        main_server.answer = lambda _: (201, {"status": "success"})
        head.start()
        if not with_redis:
            waveflow("start", env=env)

        def events() -> dict[str, set[bytes]]:
            bodies = defaultdict(set)
            for got in main_server.accepted:
                bodies[got.headers["webhook-id"]].add(got.body)
            return bodies

        jobs = HASHES + ANALYSES + MIXES
        wait_until(lambda: len(events()) == jobs, 120, main_server.summary)
        wait_until(lambda: sum(world.left().values()) == 0, 60, lambda: str(world.left()))
        assert all(len(bodies) == 1 for bodies in events().values())
        bodies = (json.loads(body) for (body,) in events().values())
        assert all(body.get("status") != "FAILURE" for body in bodies)
        status = json.loads(waveflow("status", "--json", env=env))
        assert status["in_flight"] == {}
        waveflow("stop", env=env)
