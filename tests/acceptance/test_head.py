"""The head of a Ray cluster is lost, with all that ran there, and started again."""

from __future__ import annotations

import itertools
import json
import secrets
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import Received, World, encoded, music, receiver, wait_until, waveflow
from waveflow_ray.local.aws import free_port
from waveflow_ray.messages import AnalysisJob, HashJob, MixJob, envelope
from waveflow_ray.node.sessions import members

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(300)]

HASHES, ANALYSES, MIXES = 12, 6, 2
BEFORE = 3


class Gate:
    """Takes a few webhooks, and none after them: so the head dies in the middle of the work."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __call__(self, _: Received) -> tuple[int, dict[str, Any]]:
        return (201 if next(self._numbers) < BEFORE else 503, {"status": "success"})


class Head:
    """A head as `ray up` starts it: `waveflow node up`. Its Ray can be killed, whole."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.env = env | {"RAY_TMPDIR": str(folder)}

    def up(self) -> None:
        ports = [f"--port={self.port}", f"--ray-client-server-port={free_port()}"]
        options = ["--num-cpus=2", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]
        waveflow("node", "up", *self.options, "--", "--head", *ports, *options, env=self.env)

    def kill(self) -> None:
        """All of Ray, with the service in it; only the keeper is left."""
        processes = members(self.session)
        assert len(processes) > 3
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, 20)

    def down(self) -> None:
        waveflow("node", "down", *self.options, env=self.env)

    @property
    def session(self) -> int:
        return int((self.folder / "node.pid").read_text().split()[1])

    @property
    def options(self) -> list[str]:
        return ["--folder", str(self.folder)]


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


@pytest.mark.parametrize("with_redis", [False, True], ids=["alone", "with Redis"])
def test_no_job_is_lost_with_the_head(world: World, tmp_path: Path, with_redis: bool) -> None:
    """Ray and the service start again by themselves, with Redis or without; SQS keeps jobs."""
    if with_redis and shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    for key, sound in (("head/a.wav", music(2.0)), ("head/b.wav", music(3.0, seed=1))):
        world.bucket.put(key, encoded(sound), "audio/wav")
    with ExitStack() as stack:
        main_server = stack.enter_context(receiver(answer=Gate()))
        short = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))
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
        head = Head(Path(short), env)
        stack.callback(head.down)
        head.up()
        env |= {"RAY_ADDRESS": head.address, "RAY_TMPDIR": short}
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
        assert status["has_driver"]
        session = head.session
        head.down()
        assert members(session) == []
