"""The commands as a person types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import soundfile as sf

from tests.support import (
    WAVEFLOW,
    World,
    encoded,
    music,
    ray_head,
    receiver,
    wait_until,
    waveflow,
)
from waveflow_ray.local.verify import mix_difference
from waveflow_ray.messages import HashJob, envelope

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

TOKEN = "t0ken-that-nobody-else-may-see"


def shown_by_ray(address: str) -> str:
    """All that Ray's dashboard knows of actors, tasks and workers."""
    lists = "list_actors, list_tasks, list_workers"
    program = f"""if True:
        import dataclasses, sys
        from ray.util.state import {lists}
        for what in ({lists}):
            for one in what(address=sys.argv[1], detail=True):
                print(dataclasses.asdict(one))
    """
    return subprocess.run(
        [sys.executable, "-c", program, address],
        env=os.environ | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def idle_workers(folder: str) -> set[int]:
    """Processes that wait for a task, of the Ray in that folder."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cmdline()[:1] == ["ray::IDLE"] and (raylet := process.parent()):
                found |= {process.pid} if folder in " ".join(raylet.cmdline()) else set()
    return found


def drivers(folder: str) -> list[psutil.Process]:
    """Processes that `waveflow start` left, for the Ray in that folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if "--stay" in command and process.environ().get("RAY_TMPDIR") == folder:
                found.append(process)
    return found


def everything_in(folder: Path) -> str:
    """The text of all files."""
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_start_status_stop_on_a_running_cluster(world: World, tmp_path: Path) -> None:
    """The detached service outlives the command that starts it, and is found by the others."""
    world.bucket.put("cli/a.wav", encoded(music(0.5)), "x")
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short,  # for Ray's sockets
        receiver() as main_server,
        ray_head(
            world.env | {"WEBHOOK_TOKEN": TOKEN, "RAY_TMPDIR": short}, dashboard=True
        ) as address,
    ):
        env = world.env | {
            "RAY_ADDRESS": address,
            "RAY_TMPDIR": short,
            "WEBHOOK_URL": main_server.url,
            "WEBHOOK_TOKEN": TOKEN,
            "POLL_WAIT_S": "1",
            "SCRATCH_DIR": str(tmp_path / "scratch"),
        }
        other = subprocess.run(
            [WAVEFLOW, "start"],
            env=os.environ | env | {"WEBHOOK_TOKEN": "an0ther"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert other.returncode == 2
        assert "WEBHOOK_TOKEN: not the same on the Ray node" in other.stderr
        assert "is running" in waveflow("start", env=env)
        again = subprocess.run(
            [WAVEFLOW, "start"], env=os.environ | env, capture_output=True, text=True, check=False
        )
        assert again.returncode == 1
        assert "already" in again.stderr
        waveflow("enqueue", "hash", "cli/a.wav", "--stem-id", "cli", env=env)
        main_server.wait_for(1)
        status = json.loads(waveflow("status", "--json", env=env))
        assert status["done"]["hash:SUCCESS"] == 1
        assert status["nodes"][0]["cpus"] == 2
        assert "hash" in waveflow("status", env=env)
        assert status["has_driver"]
        assert len(drivers(short)) == 1
        kept = idle_workers(short)
        time.sleep(3.0)  # Ray ends a worker that it may end after one
        assert kept
        assert kept <= idle_workers(short)
        health = json.loads(waveflow("health", "--json", env=env))
        assert {check["name"]: check["ok"] for check in health["checks"]} == {
            "s3": True,
            "sqs": True,
            "webhook": True,
            "ray": True,
        }
        examined = json.loads(waveflow("doctor", "--json", env=env))["findings"]
        of_ray = {f["name"]: f["state"] for f in examined if f["group"] == "Ray"}
        assert of_ray == dict.fromkeys(
            ("version", "cluster", "token", "dashboard", "service"), "ok"
        )
        assert main_server.accepted[0].headers["authorization"] == f"Bearer {TOKEN}"
        shown = shown_by_ray(address)
        assert all(name in shown for name in ("IngressActor", "hash", "worker_id"))
        assert TOKEN not in shown + everything_in(Path(short))
        stopped = json.loads(waveflow("stop", "--json", env=env))
        assert stopped == {"finished": 0, "given_back": 0}
        wait_until(lambda: not drivers(short), 30)
        gone = subprocess.run(
            [WAVEFLOW, "status"], env=os.environ | env, capture_output=True, text=True, check=False
        )
        assert gone.returncode == 1
        assert "waveflow start" in gone.stderr


def test_health_fails_when_something_is_wrong(world: World) -> None:
    """Exit code 1, and it says what."""
    done = subprocess.run(
        [WAVEFLOW, "health"],
        env=os.environ | world.env | {"WEBHOOK_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "FAIL webhook" in done.stdout


def test_local_is_a_whole_platform(tmp_path: Path) -> None:
    """What it prints is enough to send jobs to it; Ctrl-C ends it with exit 0."""
    output = tmp_path / "output"
    (tmp_path / ".env").write_text("WEBHOOK_TOKEN=of-another-service\n")  # is not read
    with output.open("wb") as log:
        process = subprocess.Popen(
            [WAVEFLOW, "local", "--num-cpus", "2"], stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        wait_until(lambda: "Ctrl-C" in output.read_text(), 90, output.read_text)
        lines = [line for line in output.read_text().splitlines() if line.startswith("export ")]
        env = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        upload = (
            "import boto3, os, sys; boto3.client('s3').upload_file("
            "sys.argv[1], os.environ['S3_BUCKET_NAME'], 'songs/a.wav')"
        )
        (tmp_path / "a.wav").write_bytes(encoded(music(0.5)))
        subprocess.run(
            [sys.executable, "-c", upload, str(tmp_path / "a.wav")],
            env=os.environ | env,
            check=True,
        )
        waveflow("enqueue", "hash", "songs/a.wav", "--stage-id", "stage", env=env)
        journal = tmp_path / "webhooks.jsonl"
        wait_until(
            lambda: journal.exists() and "/mixing-complete" in journal.read_text(),
            60,
            output.read_text,
        )
        paths = [json.loads(line)["path"] for line in journal.read_text().splitlines()]
        assert paths == ["/hash-check", "/completion", "/mixing-complete"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()


def test_local_without_the_service_is_what_it_talks_to(tmp_path: Path) -> None:
    """Bucket, queues and server are where it says; SIGTERM ends it with exit 0."""
    output = tmp_path / "output"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [WAVEFLOW, "local", "--no-service"], stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        wait_until(lambda: "Webhooks are written" in output.read_text(), 90, output.read_text)
        lines = [line for line in output.read_text().splitlines() if line.startswith("export ")]
        env = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        waveflow("index", env=env)
        waveflow("dlq", "list", env=env)
        with urllib.request.urlopen(env["WEBHOOK_URL"], timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()


def test_the_demo_holds_what_it_promises(tmp_path: Path) -> None:
    """A short song through everything: exit 0, a page, and every expectation by name."""
    report = json.loads(
        waveflow("demo", "--seconds", "10", "--num-cpus", "2", "--json", "-o", str(tmp_path))
    )
    assert report["ok"] is True
    assert len(report["checks"]) == 9
    assert Path(report["page"]).read_text().startswith("<!doctype html>")
    assert report["mix"]["status"] == "SUCCESS"


def test_enqueue_sends_what_the_main_server_would(world: World) -> None:
    """The envelope shape; --dry-run shows it and sends nothing."""
    shown = json.loads(
        waveflow("enqueue", "mix", "a.wav", "b.wav", "--stage-id", "st", "--dry-run")
    )
    assert shown["task"] == "app.tasks.mix_stems_and_upload"
    assert shown["kwargs"]["stem_paths"] == ["a.wav", "b.wav"]
    env = world.env | {"WEBHOOK_URL": "http://127.0.0.1:9"}
    for arguments in (["hash", "k"], ["duplicate", "k", "--audio-hash", "0f"], ["analysis", "k"]):
        waveflow("enqueue", *arguments, env=env)
    bodies = [json.loads(message.body) for message in world.queue.receive(1, 30)]
    assert sorted(body["task"].rpartition(".")[2] for body in bodies) == [
        "generate_hash_and_webhook",
        "process_audio_analysis",
        "process_duplicate_file",
    ]
    example = json.loads(envelope(HashJob, "id", stemId="s", filepath="k"))
    assert all(body.keys() == example.keys() for body in bodies)


def test_local_files_need_no_service(tmp_path: Path) -> None:
    """hash, peaks and mix work on files, with the same results."""
    for name, seed in (("a.wav", 1), ("b.wav", 2)):
        (tmp_path / name).write_bytes(encoded(music(1.0, seed=seed)))
    a, b, mixed = (str(tmp_path / name) for name in ("a.wav", "b.wav", "mix.wav"))
    rows = json.loads(waveflow("hash", a, b, "--json"))
    assert [row["path"] for row in rows] == [a, b]
    assert rows[0]["file_size"] == Path(a).stat().st_size
    document = json.loads(waveflow("peaks", a, "-n", "50", "--json"))
    assert max(document["peaks"]) == 1.0
    assert len(document["peaks"]) == 50
    facts = json.loads(waveflow("mix", a, b, "--output", mixed, "--json"))
    assert facts["duration"] == sf.info(mixed).duration == 1.0
    assert mix_difference([Path(a), Path(b)], Path(mixed)) <= 1e-4


def test_a_file_that_is_no_audio_is_named(tmp_path: Path) -> None:
    """The code and a sentence on standard error, exit code 1, no traceback."""
    path = tmp_path / "words.wav"
    path.write_text("words " * 100)
    done = subprocess.run(
        [WAVEFLOW, "peaks", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("un")
    assert "Traceback" not in done.stderr


SERVICE = ["run", "start", "stop", "status", "health", "doctor", "cleanup", "index", "dlq"]
COMMANDS = [*SERVICE, "enqueue", "local", "demo", "hash", "peaks", "mix"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    """Every command shows how it is used."""
    text = waveflow(command, "--help")
    assert "waveflow" in text
    assert "Example" in text or command in ("enqueue", "dlq")
