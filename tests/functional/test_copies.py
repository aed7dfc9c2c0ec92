"""Originals are safe: what a duplicate job deletes, what it keeps, and bodies that lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from tests.proxy import Proxy, proxy
from tests.support import World
from waveflow_ray.aws.copies import PREFIX, Copies
from waveflow_ray.jobs import perform
from waveflow_ray.jobs.index import Indexed, index_bucket
from waveflow_ray.jobs.work import copies_of
from waveflow_ray.messages import DuplicateJob, HashJob
from waveflow_ray.outcomes import Outcome
from waveflow_ray.settings import Settings


@pytest.fixture
def folder() -> str:
    """Of keys that no other test uses."""
    return f"copies/{uuid4().hex}"


def payload(outcome: Outcome) -> dict[str, Any]:
    assert outcome.webhook is not None
    body: dict[str, Any] = json.loads(outcome.webhook.body)
    return body


def hashed(key: str, settings: Settings, job_id: str = "h") -> dict[str, Any]:
    outcome = perform(HashJob(job_id=job_id, stemId="s", filepath=key), settings)
    assert outcome.status == "SUCCESS", outcome
    return payload(outcome)


def delete(key: str, settings: Settings, audio_hash: str | None = None) -> str:
    """SUCCESS or the code of the failure."""
    job = DuplicateJob(job_id="d", stemId="s", filepath=key, audio_hash=audio_hash)
    outcome = perform(job, settings)
    return "SUCCESS" if outcome.error is None else str(outcome.error.code)


def test_the_hash_check_tells_of_known_copies(
    world: World, settings: Settings, folder: str
) -> None:
    """Other keys with the same bytes that are still there; keys of any length and letters."""
    data = os.urandom(500)
    keys = [f"{folder}/ä b+%/x.wav", f"{folder}/{'ü' * 350}.wav", f"{folder}/c.wav"]
    for key in keys:
        world.bucket.put(key, data, "x")
    assert hashed(keys[0], settings)["known_copies"] == []
    assert hashed(keys[1], settings)["known_copies"] == [keys[0]]
    assert sorted(hashed(keys[2], settings)["known_copies"]) == sorted(keys[:2])
    world.bucket.delete(keys[0])
    world.bucket.put(keys[1], b"other", "x")
    assert hashed(keys[2], settings, "h2")["known_copies"] == []


def test_a_hash_check_that_is_repeated_says_the_same(
    world: World, settings: Settings, folder: str
) -> None:
    """To the byte, whatever happened in between; a new job says what is true then."""
    data = os.urandom(500)
    a, b = f"{folder}/a.wav", f"{folder}/b.wav"
    world.bucket.put(a, data, "x")
    job = HashJob(job_id="h", stemId="s", filepath=a)
    first = perform(job, settings).webhook
    world.bucket.put(b, data, "x")
    hashed(b, settings)
    assert perform(job, settings).webhook == first
    assert hashed(a, settings, "h2")["known_copies"] == [b]


def test_the_last_known_copy_stays(world: World, settings: Settings, folder: str) -> None:
    """With and without a hash in the message; a copy that nobody hashed is not known."""
    data = os.urandom(500)
    sha256 = hashlib.sha256(data).hexdigest()
    a, b = f"{folder}/a.wav", f"{folder}/b.wav"
    world.bucket.put(a, data, "x")
    world.bucket.put(b, data, "x")
    assert delete(a, settings, sha256) == "last_known_copy"
    hashed(a, settings)
    assert delete(a, settings, sha256) == delete(a, settings) == "last_known_copy"
    hashed(b, settings)
    assert delete(a, settings, sha256.upper()) == "SUCCESS"
    assert not world.bucket.exists(a)
    assert delete(a, settings, sha256) == "SUCCESS", "gone already"
    assert delete(b, settings) == "last_known_copy"
    assert world.bucket.exists(b)


@pytest.mark.parametrize("change", ["gone", "replaced", "replaced by as many bytes"])
def test_a_copy_that_is_none_any_more_does_not_count(
    world: World, settings: Settings, folder: str, change: str
) -> None:
    data = os.urandom(500)
    a, b = f"{folder}/a.wav", f"{folder}/b.wav"
    for key in (a, b):
        world.bucket.put(key, data, "x")
        hashed(key, settings)
    if change == "gone":
        world.bucket.delete(b)
    else:
        world.bucket.put(b, os.urandom(500 if "many" in change else 7), "x")
    assert delete(a, settings) == "last_known_copy"
    assert world.bucket.exists(a)


def test_guards_can_be_lowered(world: World, settings: Settings, folder: str) -> None:
    """`hash` deletes what has the hash, and unseen without one; `off` deletes what it is told."""
    data = os.urandom(500)
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"{folder}/a.wav"
    for guard, audio_hash, result in (
        ("hash", "0" * 64, "hash_mismatch"),
        ("hash", sha256, "SUCCESS"),
        ("hash", None, "SUCCESS"),
        ("off", "0" * 64, "SUCCESS"),
    ):
        world.bucket.put(key, data, "x")
        own = settings.model_copy(update={"duplicate_guard": guard})
        assert delete(key, own, audio_hash) == result
        assert world.bucket.exists(key) == (result != "SUCCESS")


def test_what_was_replaced_while_it_was_looked_at_stays(
    world: World, settings: Settings, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(500)
    a, b = f"{folder}/a.wav", f"{folder}/b.wav"
    for key in (a, b):
        world.bucket.put(key, data, "x")
        hashed(key, settings)
    leave = Copies.leave

    def replace_then(self: Copies, *arguments: Any) -> bool:
        world.bucket.put(a, b"a new recording", "x")
        return leave(self, *arguments)

    monkeypatch.setattr(Copies, "leave", replace_then)
    assert delete(a, settings) == "hash_mismatch"
    assert world.bucket.exists(a)


def test_a_mark_that_was_left_behind_counts_for_a_time(
    world: World, settings: Settings, folder: str
) -> None:
    """A worker died between its mark and its deletion: another job waits, the same goes on."""
    data = os.urandom(500)
    a, b = f"{folder}/a.wav", f"{folder}/b.wav"
    for key in (a, b):
        world.bucket.put(key, data, "x")
        hashed(key, settings)
    index = f"{PREFIX}{hashlib.sha256(data).hexdigest()}.json"
    content = world.bucket.get(index)
    assert content is not None
    entries = json.loads(content[0])

    def mark(since: float) -> None:
        marked = entries[a] | {"leaving": "another job", "leaving_since": since}
        world.bucket.put(index, json.dumps(entries | {a: marked}).encode(), "x")

    mark(since=4e9)
    assert delete(a, settings) == "storage_unavailable"
    assert delete(b, settings) == "last_known_copy", "a copy that leaves does not count"
    mark(since=1.0)
    assert delete(a, settings) == "SUCCESS"
    content = world.bucket.get(index)
    assert content is not None
    assert list(json.loads(content[0])) == [b]


def test_a_hash_that_nothing_has_any_more_is_not_in_the_index(
    world: World, settings: Settings, folder: str
) -> None:
    """Its last copy was deleted by hand, and a duplicate job finds it gone."""
    data = os.urandom(500)
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"{folder}/a.wav"
    world.bucket.put(key, data, "x")
    hashed(key, settings)
    assert world.bucket.exists(f"{PREFIX}{sha256}.json")
    world.bucket.delete(key)
    assert delete(key, settings, sha256) == "SUCCESS"
    assert not world.bucket.exists(f"{PREFIX}{sha256}.json")


def test_the_index_of_an_older_bucket(world: World, settings: Settings, folder: str) -> None:
    """Every upload is known afterwards; it goes on where it stopped, and can begin again."""
    data = os.urandom(500)
    keys = [f"{folder}/{number:03}.wav" for number in range(30)]
    for key in keys:
        world.bucket.put(key, data, "x")
    copies = copies_of(settings, world.bucket)
    seen: list[str] = []

    class StopError(Exception):
        pass

    def stop_at_10(so_far: Indexed) -> None:
        seen.append(so_far.last)
        if so_far.objects == 10:
            raise StopError

    with pytest.raises(StopError):
        index_bucket(world.bucket, copies, prefix=folder, threads=3, tell=stop_at_10)
    assert seen == keys[:10]
    first = index_bucket(world.bucket, copies, prefix=folder, after=keys[9])
    assert (first.objects, first.bytes, first.failed) == (20, 20 * 500, {})
    assert index_bucket(world.bucket, copies, prefix=folder).objects == 0
    again = index_bucket(world.bucket, copies, prefix=folder, after="")
    assert (again.objects, again.last) == (30, keys[-1])
    before = hashed(keys[2], settings, "h2")
    assert len(before["known_copies"]) == 20
    index_bucket(world.bucket, copies, prefix=folder, after="")
    assert hashed(keys[2], settings, "h2") == before, "what a job told stays"
    assert delete(keys[0], settings) == "SUCCESS"
    assert len(hashed(keys[1], settings)["known_copies"]) == 20


@pytest.fixture
def lying(world: World) -> Iterator[Proxy]:
    with proxy(world.aws.endpoint, stall_s=0.0) as state:
        yield state


@pytest.mark.parametrize("fault", ["flip", "cut", "stall"])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_body_that_is_not_the_objects_is_read_again(
    world: World, settings: Settings, folder: str, lying: Proxy, fault: Any, checksum: bool
) -> None:
    """By the checksum that S3 has, or the MD5 of objects older than those checksums."""
    data = os.urandom(300_000)
    key = f"{folder}/a.wav"
    client = world.bucket.client
    with _checksums(client, checksum):
        client.put_object(Bucket=world.bucket.name, Key=key, Body=data)
    kept = client.get_object(Bucket=world.bucket.name, Key=key, ChecksumMode="ENABLED")
    assert ("ChecksumCRC32" in kept) == checksum
    own = settings.model_copy(update={"aws_endpoint_url": lying.url})
    faults: list[Any] = [fault, fault]
    lying.choose = lambda asked: (
        faults.pop() if faults and asked.method == "GET" and "a.wav" in asked.path else None
    )
    assert hashed(key, own)["audio_hash"] == hashlib.sha256(data).hexdigest()
    assert not faults
    lying.choose = lambda asked: fault if asked.method == "GET" else None
    outcome = perform(HashJob(job_id="h", stemId="s", filepath=key), own)
    assert outcome.error is not None
    assert outcome.error.code == "storage_unavailable"


@contextmanager
def _checksums(client: Any, wanted: bool) -> Iterator[None]:
    """Upload with a checksum, or as before there were any."""
    config = client.meta.config
    before = config.request_checksum_calculation
    config.request_checksum_calculation = "when_supported" if wanted else "when_required"
    yield
    config.request_checksum_calculation = before
