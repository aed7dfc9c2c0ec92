"""A new version of the service takes over from the old one, on a cluster with work to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    WAVEFLOW,
    Received,
    Receiver,
    World,
    encoded,
    music,
    ray_head,
    receiver,
    wait_until,
    waveflow,
)
from waveflow_ray import __version__
from waveflow_ray.messages import AnalysisJob, HashJob, Job, envelope
from waveflow_ray.release import PACKAGE

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

STEM = "takeover/a.wav"
TAKE_OVER = ("start", "--replace", "--send-code")


class Version:
    """A copy of the code, with a version of its own."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder = folder
        self.code = folder / "waveflow_ray"
        shutil.copytree(PACKAGE, self.code, ignore=shutil.ignore_patterns("__pycache__"))
        self.change("__init__.py", f'"{__version__}"', f'"{version}"')

    def change(self, name: str, before: str, after: str) -> None:
        text = (self.code / name).read_text()
        assert before in text
        (self.code / name).write_text(text.replace(before, after))

    def waveflow(self, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [WAVEFLOW, *arguments],
            env=os.environ | env | {"PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


class Traffic(threading.Thread):
    """Sends hashes and analyses, a few ahead of what is done, until it is told to end."""

    def __init__(self, world: World, main_server: Receiver) -> None:
        super().__init__()
        self.world = world
        self.main_server = main_server
        self.stems: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            if len(self.stems) - len(self.main_server.accepted) > 6:
                continue
            for kind in (HashJob, HashJob, AnalysisJob):
                stem = f"stem-{len(self.stems)}"
                self.world.queue.send(envelope(kind, stem, stemId=stem, filepath=STEM))
                self.stems.append(stem)

    def end(self) -> None:
        self.ended.set()
        self.join()


class SlowStem:
    """The main server answers its first webhook when it is told to."""

    stem = "slow"

    def __init__(self, world: World) -> None:
        self.world = world
        self.began = threading.Event()
        self.may_end = threading.Event()

    def send(self, kind: type[Job]) -> None:
        body = envelope(kind, f"{self.stem}-{kind.kind}", stemId=self.stem, filepath=STEM)
        self.world.queue.send(body)

    def answer(self, got: Received) -> tuple[int, dict[str, Any]]:
        if got.payload["stemId"] == self.stem:
            self.began.set()
            self.may_end.wait(240)
        return 201, {}


@dataclass
class Platform:
    """A cluster with the service on it, and stems that keep coming."""

    env: dict[str, str]
    main_server: Receiver
    traffic: Traffic
    slow: SlowStem


@pytest.fixture
def platform(world: World, tmp_path: Path) -> Iterator[Platform]:
    world.bucket.put(STEM, encoded(music(0.5)), "x")
    slow = SlowStem(world)
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short,  # for Ray's sockets
        receiver(answer=slow.answer) as main_server,
        # Compiling takes longer than all else here.
        ray_head(world.env | {"RAY_TMPDIR": short, "NUMBA_DISABLE_JIT": "1"}) as address,
    ):
        env = world.env | {
            "RAY_ADDRESS": address,
            "RAY_TMPDIR": short,
            "WEBHOOK_URL": main_server.url,
            "POLL_WAIT_S": "1",
            "WEBHOOK_TIMEOUT_S": "240",
            "DRAIN_TIMEOUT_S": "240",
            "SCRATCH_DIR": str(tmp_path / "scratch"),
        }
        assert f"WaveFlow {__version__}+" in waveflow("start", env=env)
        traffic = Traffic(world, main_server)
        traffic.start()
        try:
            wait_until(lambda: len(main_server.accepted) > 5, 60, main_server.summary)
            yield Platform(env, main_server, traffic, slow)
        finally:
            slow.may_end.set()
            traffic.end()
        waveflow("stop", env=env)


def release(platform: Platform) -> str:
    return str(json.loads(waveflow("status", "--json", env=platform.env))["release"])


def test_a_new_version_takes_over_in_the_middle_of_work(platform: Platform, tmp_path: Path) -> None:
    """Every job is told of once, by either."""
    main_server, slow = platform.main_server, platform.slow
    better = Version(tmp_path / "better", "9.9.9")
    slow.send(HashJob)
    wait_until(slow.began.is_set, 60, main_server.summary)
    before = len(main_server.accepted)
    with ThreadPoolExecutor(1) as threads:
        try:
            taking_over = threads.submit(better.waveflow, *TAKE_OVER, env=platform.env)
            wait_until(
                lambda: release(platform).startswith("9.9.9+"), 120, main_server.summary, 1.0
            )
            seen = len(main_server.accepted)
            assert seen > before  # the old one worked while the new one made itself ready
            slow.send(AnalysisJob)  # which may not be told of before the first
            # The old one has a job to end, and the new one works already.
            wait_until(lambda: len(main_server.accepted) > seen + 10, 60, main_server.summary)
            assert not taking_over.done()
        finally:
            slow.may_end.set()
        done = taking_over.result()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WaveFlow 9.9.9+" in done.stdout
    platform.traffic.end()
    stems = [*platform.traffic.stems, slow.stem, slow.stem]
    wait_until(lambda: len(main_server.accepted) >= len(stems), 120, main_server.summary)
    assert release(platform).startswith("9.9.9+")
    told = [got.payload["stemId"] for got in main_server.accepted]
    assert sorted(told) == sorted(stems)
    assert main_server.overlaps() == []


@pytest.mark.slow
def test_a_version_that_does_not_work_changes_nothing(platform: Platform, tmp_path: Path) -> None:
    """It says why, and the old one goes on."""
    main_server = platform.main_server
    broken = Version(tmp_path / "broken", "8.8.8")
    broken.change("runtime/tasks.py", "    bucket_of(settings)\n", "    1 / 0\n")
    failed = broken.waveflow(*TAKE_OVER, env=platform.env)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "the old one goes on" in failed.stderr
    assert "ZeroDivisionError" in failed.stderr
    seen = len(main_server.accepted)
    wait_until(lambda: len(main_server.accepted) > seen, 60, main_server.summary)
    assert release(platform).startswith(f"{__version__}+")
    platform.traffic.end()
    stems = platform.traffic.stems
    wait_until(lambda: len(main_server.accepted) >= len(stems), 60, main_server.summary)
    assert sorted(got.payload["stemId"] for got in main_server.accepted) == sorted(stems)
