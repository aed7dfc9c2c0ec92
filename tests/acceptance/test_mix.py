"""Mixes on a real Ray cluster of several nodes: spread out, killed half-way, and right."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import soundfile as sf
from ray.cluster_utils import Cluster

from tests.support import World, encoded, music, wait_until
from waveflow_ray.audio.cell import CellOutput
from waveflow_ray.audio.plan import Cell
from waveflow_ray.jobs import perform
from waveflow_ray.jobs.mix import Render
from waveflow_ray.local.aws import LocalAws
from waveflow_ray.messages import MixJob
from waveflow_ray.outcomes import Outcome
from waveflow_ray.runtime.cells import render_on_ray
from waveflow_ray.settings import Settings, load_settings

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

NODES = 3


@pytest.fixture(scope="module")
def cluster(aws: LocalAws) -> Iterator[Cluster]:
    """Three Ray nodes of one CPU each on this machine."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(NODES - 1):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def settings(world: World, tmp_path: Path) -> Settings:
    fields = {name.lower(): value for name, value in world.env.items()}
    return load_settings(
        _env_file=None, webhook_url="http://127.0.0.1:9", scratch_dir=tmp_path / "scratch", **fields
    )


def upload(world: World, folder: str) -> list[str]:
    """Stems for many windows, and two that have to be decoded from their start."""
    sounds = {"a.wav": music(100.0), "b.wav": music(100.0, seed=1), "c.wav": music(95.0, seed=2)}
    for name, samples in sounds.items():
        world.bucket.put(f"{folder}/{name}", encoded(samples), "audio/wav")
    for name in ("d.flac", "e.flac"):
        world.bucket.put(f"{folder}/{name}", encoded(music(100.0), format="FLAC"), "audio/flac")
    return [f"{folder}/{name}" for name in (*sounds, "d.flac", "e.flac")]


def mix_bytes(world: World, outcome: Outcome) -> bytes:
    """The samples that the mix has."""
    assert outcome.status == "SUCCESS", outcome.error
    assert outcome.webhook is not None
    key = json.loads(outcome.webhook.body)["mixed_file_path"]
    body = world.bucket.client.get_object(Bucket=world.bucket.name, Key=key)["Body"].read()
    samples, _ = sf.read(io.BytesIO(body), dtype="int16")
    return bytes(samples.tobytes())


def run(
    settings: Settings, stage: str, keys: list[str], render: Render | None, **fields: Any
) -> Outcome:
    job = MixJob.model_validate({"job_id": "m", "stageId": stage, "stem_paths": keys, **fields})
    return perform(job, settings, render=render, parallelism=NODES)


def meddling(render: Render, meddle: Callable[[int], None]) -> Render:
    """A render that calls `meddle` with the number of outputs so far, before each."""

    def meddled(cells: Sequence[Cell]) -> Iterator[tuple[int, CellOutput]]:
        for count, output in enumerate(render(cells)):
            meddle(count)
            yield output

    return meddled


def kill_a_cell_worker() -> None:
    """kill -9 of a process of this cluster that is at work on a cell."""

    def at_work() -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if "mix cell" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    deadline = time.monotonic() + 60
    while not (workers := at_work()) and time.monotonic() < deadline:
        time.sleep(0.001)
    workers[0].send_signal(signal.SIGKILL)


def test_cells_run_on_all_nodes_and_survive_a_killed_worker(
    cluster: Cluster, world: World, settings: Settings
) -> None:
    """The same samples in one process, on three nodes, and with workers killed half-way."""
    keys = upload(world, "spread")
    here = mix_bytes(world, run(settings, "here", keys, None))

    spread = run(settings, "spread", keys, render_on_ray(settings, NODES))
    assert mix_bytes(world, spread) == here
    assert len(spread.notes["cells"]) == NODES, spread.notes
    size = sum(world.bucket.head(key, 1).size for key in keys)
    assert spread.usage.bytes_in <= 1.1 * size

    killed: list[int] = []

    def meddle(count: int) -> None:
        if count in (3, 9):
            kill_a_cell_worker()
            killed.append(count)

    survived = run(settings, "killed", keys, meddling(render_on_ray(settings, NODES), meddle))
    assert killed == [3, 9]
    assert mix_bytes(world, survived) == here


def test_a_mix_ends_though_every_cpu_is_held_by_others(
    cluster: Cluster, world: World, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after nodes were lost, when mixes that wait for their cells hold all that is left."""
    monkeypatch.setattr("waveflow_ray.runtime.cells.STARVED_S", 0.5)
    keys = upload(world, "starved")
    here = mix_bytes(world, run(settings, "unstarved", keys, None))

    @ray.remote(num_cpus=1)
    def hold() -> None:
        time.sleep(600.0)

    held = [hold.remote() for _ in range(NODES)]
    try:
        wait_until(lambda: ray.available_resources().get("CPU", 0.0) == 0.0, 60)
        starved = run(settings, "starved", keys, render_on_ray(settings, NODES))
        assert mix_bytes(world, starved) == here
    finally:
        for ref in held:
            ray.cancel(ref, force=True)
        wait_until(lambda: ray.available_resources().get("CPU") == NODES, 60)


def test_a_stem_that_breaks_late_fails_the_mix_and_leaves_nothing(
    cluster: Cluster, world: World, settings: Settings
) -> None:
    """Damage after 90 % of a stem: named, no object, no upload left open, cells ended."""
    flac = encoded(music(100.0), format="FLAC")
    at = len(flac) * 92 // 100
    damaged = flac[:at] + bytes(4096) + flac[at + 4096 :]
    keys = upload(world, "broken")
    world.bucket.put("broken/vocals.flac", damaged, "audio/flac")
    # Without normalisation the file is uploaded while the cells are at work.
    outcome = run(
        settings,
        "broken",
        [*keys, "broken/vocals.flac"],
        render_on_ray(settings, NODES),
        normalization="none",
    )
    assert outcome.status == "FAILURE"
    assert outcome.error is not None
    assert "vocals.flac" in outcome.error.message
    # Parts of an upload may have been sent by then; they are gone with it.
    assert list(world.bucket.keys("mixed/broken_")) == []
    assert list(world.bucket.keys("waveforms/broken_")) == []
    uploads = world.bucket.client.list_multipart_uploads(Bucket=world.bucket.name)
    assert not uploads.get("Uploads")
    wait_until(lambda: ray.available_resources().get("CPU") == NODES, 30)
