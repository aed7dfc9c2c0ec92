"""The service as an operator runs it: a process, real Ray, S3 and SQS by moto, real webhooks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from standardwebhooks import Webhook as StandardWebhook

from tests.proxy import Asked, Fault, proxy
from tests.support import (
    Received,
    Receiver,
    ServiceProcess,
    World,
    encoded,
    make_world,
    music,
    receiver,
    service,
    wait_until,
    waveflow,
)
from waveflow_ray.local.aws import LocalAws
from waveflow_ray.messages import AnalysisJob, HashJob, MixJob, envelope

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


@dataclass
class Shared:
    """A running service and what is around it."""

    world: World
    main_server: Receiver
    running: ServiceProcess


def analysis(number: int, key: str) -> str:
    """An analysis job of a stem that is named after the folder: tests share a bucket."""
    stem_id = f"{key.partition('/')[0]}-{number}"
    return envelope(AnalysisJob, f"analysis-{number}", stemId=stem_id, filepath=key)


def each_once(folder: str, count: int) -> dict[str, int]:
    """What `outcomes` should be."""
    return {f"{folder}-{number}": 1 for number in range(count)}


def celery(task: str, celery_id: str, args: list[Any]) -> dict[str, Any]:
    """A Celery protocol 2 message as kombu's SQS transport writes it."""
    body = base64.b64encode(json.dumps([args, {"num_peaks": 100}, {}]).encode()).decode()
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": celery_id},
        "properties": {"body_encoding": "base64", "correlation_id": celery_id},
    }


@pytest.fixture(scope="module")
def shared(aws: LocalAws, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A service for all tests that leave it as they found it."""
    world = make_world(aws, "shared")
    with (
        receiver() as main_server,
        service(world.env | {"WEBHOOK_URL": main_server.url}, tmp_path_factory.mktemp("s")) as one,
    ):
        yield Shared(world, main_server, one)
        assert one.stop() == 0, one.output()


@pytest.fixture
def used(shared: Shared) -> Shared:
    """The shared service, whose main server has no webhooks yet and takes all."""
    shared.main_server.received.clear()
    shared.main_server.answer = lambda _got: (201, {"status": "success"})
    return shared


def nothing_left(world: World, dead: int = 0) -> None:
    """No message is anywhere but, where expected, in the dead-letter queue."""
    wait_until(
        lambda: world.left() == {"visible": 0, "in_flight": 0, "delayed": 0, "dead": dead},
        30,
        lambda: str(world.left()),
    )


def outcomes(main_server: Receiver) -> dict[str, int]:
    """Accepted webhooks by stem."""
    counts: dict[str, int] = {}
    for got in main_server.accepted:
        counts[got.payload["stemId"]] = counts.get(got.payload["stemId"], 0) + 1
    return counts


def test_every_message_shape_ends_in_the_webhooks_of_the_contract(
    world: World, tmp_path: Path
) -> None:
    """Envelope, flat, bare and Celery messages, all tasks, faults too: field for field."""
    wav = encoded(music(1.0))
    world.bucket.put("up/a.wav", wav, "audio/wav")
    world.bucket.put("up/copy.wav", wav, "audio/wav")
    world.bucket.put("up/b.flac", encoded(music(2.0, 48000, 1, 3), 48000, format="FLAC"), "x")
    world.bucket.put("up/not.wav", b"no sound at all " * 50, "audio/wav")
    hashes = {"stemId": "s-flat", "filepath": "up/a.wav", "timestamp": 17, "userId": "u1"}
    celery_2 = celery(AnalysisJob.task, "celery-1", ["u2", "t2", "s-celery", "up/b.flac"])
    celery_2_base64 = celery(HashJob.task, "celery-2", [None, None, "s-b64", None, "up/b.flac"])
    messages: list[Any] = [
        {
            "task": "app.tasks.generate_hash_and_webhook",
            "id": "hash-s-env-1",
            "args": [],
            "kwargs": {
                "stemId": "s-env",
                "filepath": "up/a.wav",
                "stageId": "st",
                "trackId": None,
                "timestamp": "t",
                "original_filename": "Mein Lied.wav",
                "unheard_of": 1,
            },
        },
        {"task": "app.tasks.generate_hash_and_webhook", **hashes},
        {"stemId": "s-bare", "filepath": "up/not.wav"},
        celery_2,
        {
            "task": "app.tasks.process_duplicate_file",
            "stemId": "s-dup",
            "filepath": "up/copy.wav",
            "audio_hash": hashlib.sha256(wav).hexdigest().upper(),
        },
        {"task": "app.tasks.process_audio_analysis", "stemId": "s-bad", "filepath": "up/not.wav"},
        {
            "task": "app.tasks.mix_stems_and_upload",
            "id": "mixing-st-1",
            "kwargs": {
                "stageId": "st",
                "upstreamId": "up-1",
                "stem_paths": ["up/a.wav", "up/b.flac"],
            },
        },
        {"task": "app.tasks.mix_stems_and_upload", "stem_paths": ["up/a.wav"]},
        {"task": "health_check"},
        {"task": "app.tasks.cleanup_temp_files"},
        {"task": "app.tasks.unheard_of", "stemId": "s-unknown"},
        {"task": "app.tasks.process_audio_analysis", "filepath": "up/a.wav"},
    ]
    with receiver() as main_server:
        env = {"WEBHOOK_URL": main_server.url + "/", "DASHBOARD": "true"}
        (tmp_path / ".env").write_text(f"WEBHOOK_SECRET={SECRET}\n")
        with service(world.env | env, tmp_path) as running:
            waveflow("index", "up/", env=world.env | env)
            for message in messages:
                world.queue.send(json.dumps(message))
            world.queue.send(base64.b64encode(json.dumps(celery_2_base64).encode()).decode())
            main_server.wait_for(9)
            nothing_left(world, dead=2)
            dashboard = re.search(r"Ray dashboard: (http://127\.0\.0\.1:\d+)", running.output())
            assert dashboard, "it listens on this machine only"
            assert requests.get(f"{dashboard[1]}/api/version", timeout=10).status_code == 401
            assert running.stop() == 0, running.output()
            assert len(running.events("job")) == 13
        got = {(r.path, r.payload.get("stemId")): r.payload for r in main_server.accepted}

    assert len(main_server.received) == 9
    assert not main_server.overlaps()
    for webhook in main_server.received:
        assert webhook.headers["content-type"] == "application/json"
        assert webhook.headers["webhook-id"].startswith("msg_")
        assert StandardWebhook(SECRET).verify(webhook.body, webhook.headers) == webhook.payload
    # Depends on whether the duplicate job was faster.
    assert got["/hash-check", "s-env"].pop("known_copies") in ([], ["up/copy.wav"])
    assert got["/hash-check", "s-env"] == {
        "stemId": "s-env",
        "userId": None,
        "trackId": None,
        "stageId": "st",
        "filepath": "up/a.wav",
        "audio_hash": hashlib.sha256(wav).hexdigest(),
        "timestamp": "t",
        "original_filename": "Mein Lied.wav",
        "status": "hash_generated",
    }
    assert got["/hash-check", "s-flat"]["timestamp"] == 17
    assert got["/hash-check", "s-flat"]["original_filename"] == "a.wav"
    assert got["/hash-check", "s-bare"]["status"] == "hash_generated"
    analysed = got["/completion", "s-celery"]
    assert analysed["status"] == "SUCCESS"
    assert analysed["userId"] == "u2"
    assert analysed["audio_wave_path"] == analysed["result"]["waveform_data_path"]
    assert analysed["result"]["duration"] == pytest.approx(2.0)
    assert analysed["result"]["num_peaks"] == 100
    assert analysed["processing_time"] > 0
    deleted = got["/completion", "s-dup"]
    assert deleted["status"] == "SUCCESS"
    assert {deleted[k] for k in ("result", "processing_time", "audio_wave_path")} == {None}
    assert not world.bucket.exists("up/copy.wav")
    failure = got["/completion", "s-bad"]
    assert failure["status"] == "FAILURE"
    assert failure["result"]["error_code"] == "unsupported_media_type"
    assert failure["result"]["error"] == failure["result"]["error_message"]
    assert failure["result"]["retryable"] is False
    assert got["/completion", "s-unknown"]["result"]["error_code"] == "unknown_task"
    mix = got["/mixing-complete", None]
    assert mix["status"] == "SUCCESS"
    assert (mix["stageId"], mix["upstreamId"], mix["task_id"]) == ("st", "up-1", "mixing-st-1")
    assert mix["stem_count"] == 2
    assert mix["stem_paths"] == ["up/a.wav", "up/b.flac"]
    assert world.bucket.exists(mix["mixed_file_path"])
    assert world.bucket.exists(mix["waveform_data_path"])
    assert got["/hash-check", "s-b64"]["filepath"] == "up/b.flac"


def test_a_drain_loses_nothing_and_leaves_nothing(world: World, tmp_path: Path) -> None:
    """SIGTERM amid 50 analyses ends with exit 0; a new start does the rest, each once."""
    world.bucket.put("drain/a.flac", encoded(music(120.0), format="FLAC"), "audio/flac")
    temp = Path(tempfile.mkdtemp(prefix="wf"))  # short: Ray's sockets are in it
    with receiver() as main_server:
        env = world.env | {"WEBHOOK_URL": main_server.url, "TMPDIR": str(temp)}
        with service(env, tmp_path) as first:
            for number in range(50):
                world.queue.send(analysis(number, "drain/a.flac"))
            main_server.wait_for(5)
            started = time.monotonic()
            assert first.stop() == 0, first.output()
            assert time.monotonic() - started < 60
        before = len(main_server.accepted)
        assert before < 50, "the signal came too late to show anything"
        facts = world.queue.facts()
        assert facts.in_flight == 0
        assert facts.visible == 50 - before
        with service(env, tmp_path) as second:
            main_server.wait_for(50, timeout_s=120)
            nothing_left(world)
            assert second.stop() == 0
        assert outcomes(main_server) == each_once("drain", 50)
        assert {r.payload["status"] for r in main_server.accepted} == {"SUCCESS"}
        assert list(first.scratch.iterdir()) == []
        # Ray's own: its session, and two empty folders of its dashboard's.
        left = [path.name for path in temp.iterdir() if not path.name.startswith("pymp-")]
        assert left == ["ray"]
        shutil.rmtree(temp)


def test_a_second_signal_ends_at_once(world: World, tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice does not want to wait; the jobs stay in the queue."""
    with receiver(answer=lambda _r: (time.sleep(20), (201, {}))[1]) as main_server:
        env = world.env | {"WEBHOOK_URL": main_server.url}
        with service(env, tmp_path) as running:
            world.bucket.put("second/a.wav", encoded(music(0.1)), "audio/wav")
            world.queue.send(analysis(1, "second/a.wav"))
            wait_until(lambda: bool(world.puts("waveforms/second-1_")), 30)
            running.process.send_signal(signal.SIGINT)
            wait_until(lambda: bool(running.events("draining")), 10)
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(10) == 130


def test_a_killed_worker_costs_nothing(used: Shared) -> None:
    """kill -9 of the worker in mid-job: the job is started again, and reported once."""
    world, main_server, running = used.world, used.main_server, used.running
    world.bucket.put("kill/a.flac", encoded(music(180.0), format="FLAC"), "audio/flac")
    for number in range(8):
        world.queue.send(analysis(number, "kill/a.flac"))
    running.wait_for_worker("ray::analysis").kill()
    main_server.wait_for(8)
    nothing_left(world)
    assert running.events("a worker was lost")
    assert outcomes(main_server) == each_once("kill", 8)
    assert {r.payload["status"] for r in main_server.accepted} == {"SUCCESS"}


def test_a_file_that_crashes_its_reader_costs_one_job(world: World, tmp_path: Path) -> None:
    """Two workers die of it, no more; it is reported, and the service works on.

    Also among hash jobs, which share a worker: the others are done again, each alone, and of what
    is alone with it two workers die.
    """
    world.bucket.put("crash/a.flac", encoded(music(400.0), format="FLAC"), "audio/flac")
    for name in ("b", "poison", *"01234"):
        world.bucket.put(f"crash/{name}.wav", encoded(music(1.0, seed=ord(name[0]))), "audio/wav")
    stalled: Counter[str] = Counter()
    hashes = {f"crash-h{n}": f"crash/{n}.wav" for n in ("poison", *range(5))}

    def choose(asked: Asked) -> Fault | None:
        """The first read of every file that is hashed never ends, nor does any of the poison."""
        key = asked.path.partition("?")[0].removeprefix(f"/{world.bucket.name}/")
        if asked.method != "GET" or key not in hashes.values():
            return None
        if stalled[key] and "poison" not in key:
            return None
        stalled[key] += 1
        return "stall"

    def kill_hashers() -> None:
        for worker in running.workers("ray::hash"):
            worker.kill()
            worker.wait(10)

    with (
        receiver() as main_server,
        proxy(world.aws.endpoint, choose=choose, stall_s=600.0) as between,
        service(
            world.env | {"WEBHOOK_URL": main_server.url, "AWS_ENDPOINT_URL": between.url}, tmp_path
        ) as running,
    ):
        world.queue.send(analysis(0, "crash/a.flac"))
        for _ in range(2):
            killed = running.wait_for_worker("ray::analysis")
            killed.kill()
            killed.wait(10)
        main_server.wait_for(1)
        world.queue.send(analysis(1, "crash/b.wav"))
        main_server.wait_for(2)
        world.queue.client.send_message_batch(
            QueueUrl=world.queue.url,
            Entries=[
                {"Id": stem, "MessageBody": envelope(HashJob, stem, stemId=stem, filepath=key)}
                for stem, key in hashes.items()
            ],
        )
        wait_until(lambda: len(stalled) == 6, 60, running.output)
        kill_hashers()
        main_server.wait_for(7)
        reads = 1
        while len(main_server.accepted) < 8:
            wait_until(
                lambda: stalled["crash/poison.wav"] > reads or len(main_server.accepted) == 8,  # noqa: B023 - called at once
                60,
                running.output,
            )
            reads += 1
            kill_hashers()
        nothing_left(world)
        assert running.stop() == 0
    crashed, fine, *hashed, poison = (r.payload for r in main_server.accepted)
    assert (crashed["stemId"], crashed["status"]) == ("crash-0", "FAILURE")
    assert crashed["result"]["error_code"] == "worker_crashed"
    assert (fine["stemId"], fine["status"]) == ("crash-1", "SUCCESS")
    assert {got["stemId"] for got in hashed} == hashes.keys() - {"crash-hpoison"}
    assert {got["status"] for got in hashed} == {"hash_generated"}
    assert (poison["stemId"], poison["status"]) == ("crash-hpoison", "FAILURE")
    assert poison["result"]["error_code"] == "worker_crashed"
    # Once with the others, unless it happened to be received alone.
    assert stalled["crash/poison.wav"] in (2, 3)


def test_a_killed_ingress_costs_a_visibility_timeout(used: Shared) -> None:
    """kill -9 of the ingress in mid-job: Ray starts it again, SQS delivers again."""
    world, main_server, running = used.world, used.main_server, used.running
    world.bucket.put("ingress/a.flac", encoded(music(120.0), format="FLAC"), "audio/flac")
    for number in range(8):
        world.queue.send(analysis(number, "ingress/a.flac"))
    running.wait_for_worker("ray::analysis")
    running.wait_for_worker("ray::IngressActor", 1).kill()
    wait_until(
        lambda: outcomes(main_server).keys() == each_once("ingress", 8).keys(), 90, running.output
    )
    nothing_left(world)
    ids = [r.headers["webhook-id"] for r in main_server.accepted]
    assert len(set(ids)) == 8
    assert not main_server.overlaps()


def test_outcomes_wait_while_the_main_server_is_away(used: Shared) -> None:
    """503 while 20 jobs end: every webhook arrives afterwards, once; nothing is done twice."""
    world, main_server, running = used.world, used.main_server, used.running
    back_at = time.monotonic() + 3600.0

    def answer(_got: Received) -> tuple[int, dict[str, Any]]:
        away = time.monotonic() < back_at
        return (503, {"message": "away"}) if away else (201, {"status": "success"})

    main_server.answer = answer
    world.bucket.put("away/a.wav", encoded(music(1.0)), "audio/wav")
    for number in range(20):
        world.queue.send(analysis(number, "away/a.wav"))
    wait_until(lambda: len(main_server.received) >= 3, 60, running.output)
    # Longer than a lease: they have to be renewed meanwhile.
    back_at = time.monotonic() + 10.0
    main_server.wait_for(20)
    nothing_left(world)
    assert outcomes(main_server) == each_once("away", 20)
    tried: dict[str, set[bytes]] = {}
    for got in main_server.received:
        tried.setdefault(got.headers["webhook-id"], set()).add(got.body)
    assert all(len(bodies) == 1 for bodies in tried.values())
    assert not main_server.overlaps()
    for number in range(20):
        assert len(world.puts(f"waveforms/away-{number}_")) == 1, "computed twice"


def test_twins_become_one_webhook(used: Shared) -> None:
    """Every message sent twice, half of them again while their twin is at work: one each."""
    world, main_server = used.world, used.main_server

    def slow(_got: Received) -> tuple[int, dict[str, Any]]:
        time.sleep(0.3)
        return 201, {"status": "success"}

    main_server.answer = slow
    world.bucket.put("twins/a.wav", encoded(music(1.0)), "audio/wav")
    bodies = []
    for number in range(10):
        stem = {"stemId": f"twin-{number}", "filepath": "twins/a.wav"}
        bodies.append(envelope(HashJob, f"hash-{number}", **stem))
        bodies.append(envelope(AnalysisJob, f"analysis-{number}", **stem))
    bodies.append(envelope(MixJob, "mix", stageId="twins", stem_paths=["twins/a.wav"]))
    for body in bodies * 2:
        world.queue.send(body)
    main_server.wait_for(2)
    for body in bodies[::2]:
        world.queue.send(body)
    main_server.wait_for(len(bodies))
    nothing_left(world)
    world.queue.send(bodies[0])
    nothing_left(world)
    ids = [got.headers["webhook-id"] for got in main_server.received]
    assert len(ids) == len(set(ids)) == len(bodies)
    assert not main_server.overlaps()


def test_a_wrong_setting_ends_it_before_anything_starts(world: World, tmp_path: Path) -> None:
    """The message names the variable, its value and what is allowed; exit code 2."""
    env = world.env | {"WEBHOOK_URL": "http://127.0.0.1:9", "MAX_RETRIES": "many"}
    running = ServiceProcess(env, tmp_path)
    assert running.process.wait(30) == 2
    assert "MAX_RETRIES=many" in running.output()
    env = world.env | {"WEBHOOK_URL": "http://127.0.0.1:9", "S3_BUCKET_NAME": "nowhere"}
    running = ServiceProcess(env, tmp_path)
    assert running.process.wait(30) == 2
    assert "S3_BUCKET_NAME=nowhere" in running.output()
