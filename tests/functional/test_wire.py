"""Plain S3 requests made by hand: the same results as boto3's, and boto3 where they fail."""

from __future__ import annotations

import base64
import hashlib
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.proxy import Asked, Fault, proxy
from tests.support import World
from waveflow_ray.aws.clients import s3_client, s3_wire
from waveflow_ray.aws.s3 import Bucket
from waveflow_ray.aws.wire import CHECKSUMS, Wire
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.local.aws import REGION

BODY = bytes(range(256)) * 9000  # more than a chunk


def wired(world: World, endpoint: str | None = None) -> tuple[Bucket, Wire]:
    """A bucket whose boto3 client must not be used, and its wire."""
    wire = s3_wire(REGION, endpoint or world.aws.endpoint, world.bucket.name)
    assert wire is not None
    return Bucket(None, world.bucket.name, wire), wire  # type: ignore[arg-type]


@contextmanager
def faulty(world: World, *faults: Fault | None) -> Iterator[tuple[Bucket, list[Asked]]]:
    """A bucket behind a proxy that does these to its first requests; and what was asked for."""
    asked: list[Asked] = []

    def choose(one: Asked) -> Fault | None:
        asked.append(one)
        return faults[len(asked) - 1] if len(asked) <= len(faults) else None

    with proxy(world.aws.endpoint, choose=choose) as between:
        client = s3_client(REGION, between.url)
        wire = s3_wire(REGION, between.url, world.bucket.name)
        yield Bucket(client, world.bucket.name, wire), asked


@pytest.mark.parametrize("key", ["wire/a.wav", "wire/ä ö+&=?#%41~.wav", "wire/[1] 'x'.wav"])
def test_objects_come_and_go_without_boto3(world: World, key: str) -> None:
    """Written under a condition and read: keys with any letters too."""
    bucket, _ = wired(world)
    etag = bucket.put_if(key, BODY, "audio/wav", None)
    assert etag is not None
    assert bucket.put_if(key, b"other", "audio/wav", None) is None, "there is one already"
    assert bucket.put_if(key, b"other", "audio/wav", '"0123"') is None, "it has another ETag"
    found = bucket.hash(key)
    assert (found.sha256, found.size, found.etag) == (
        hashlib.sha256(BODY).hexdigest(),
        len(BODY),
        etag,
    )
    assert bucket.get(key) == (BODY, etag)
    head = bucket.head(key, 100)
    assert (head.body, head.size, head.etag) == (BODY[:100], len(BODY), etag)
    assert bucket.read(key, 5000, 2_000_000, etag) == BODY[5000:2_000_000]
    assert world.bucket.get(key) == (BODY, etag)
    stored = world.bucket.client.head_object(Bucket=world.bucket.name, Key=key)
    assert stored["ContentType"] == "audio/wav"
    world.bucket.delete(key)


def test_an_empty_object_and_a_missing_one(world: World) -> None:
    """An empty object has a hash; a missing one is told as boto3 tells it."""
    world.bucket.put("wire/empty", b"", "x")
    bucket = Bucket(
        world.bucket.client,
        world.bucket.name,
        s3_wire(REGION, world.aws.endpoint, world.bucket.name),
    )
    assert bucket.hash("wire/empty").size == 0
    assert bucket.head("wire/empty", 100).size == 0
    assert bucket.get("wire/nowhere") is None
    with pytest.raises(JobError) as error:
        bucket.hash("wire/nowhere")
    assert error.value.code is ErrorCode.OBJECT_NOT_FOUND


@pytest.mark.parametrize("fault", ["drop", "unavailable", "error", "cut", "flip", "lose"])
def test_whatever_goes_wrong_boto3_tries_again(world: World, fault: Fault) -> None:
    """A closed connection, 503, half of a body, a flipped bit: the result is right all the same."""
    world.bucket.put("wire/fault.wav", BODY, "audio/wav")
    with faulty(world, fault) as (bucket, asked):
        assert bucket.hash("wire/fault.wav").sha256 == hashlib.sha256(BODY).hexdigest()
        assert len(asked) == 2


@pytest.mark.parametrize("fault", ["drop", "unavailable", "error", "cut", "stall", "lose"])
def test_bytes_of_an_object_that_do_not_come_are_asked_for_again(
    world: World, fault: Fault
) -> None:
    """And they are never of another state of the object."""
    world.bucket.put("wire/part.wav", BODY, "audio/wav")
    etag = world.bucket.head("wire/part.wav", 10).etag
    with faulty(world, fault) as (bucket, _):
        assert bucket.read("wire/part.wav", 7, 1_700_000, etag) == BODY[7:1_700_000]
    with faulty(world, fault) as (bucket, _):
        assert bucket.head("wire/part.wav", 70_000).body == BODY[:70_000]
    world.bucket.put("wire/part.wav", b"another" * 500_000, "audio/wav")
    with faulty(world) as (bucket, _), pytest.raises(JobError) as error:
        bucket.read("wire/part.wav", 7, 1_700_000, etag)
    assert error.value.code is ErrorCode.STORAGE_UNAVAILABLE


def test_after_a_fault_boto3_is_asked_first(world: World) -> None:
    """While S3 is in trouble no request is made in vain before each of boto3's."""
    world.bucket.put("wire/off.wav", BODY, "audio/wav")
    with faulty(world, "unavailable") as (bucket, asked):
        for _ in range(3):
            bucket.hash("wire/off.wav")
        assert len(asked) == 4


def test_a_lost_answer_to_a_condition_looks_like_a_lost_race(world: World) -> None:
    """As with boto3's own retries: the entry is there, and whoever wrote it reads that."""
    with faulty(world, "lose") as (bucket, _):
        assert bucket.put_if("wire/lost", b"mine", "x", None) is None
    assert world.bucket.get("wire/lost") is not None
    world.bucket.delete("wire/lost")


def test_writes_under_a_condition_at_the_same_moment_are_made_again(world: World) -> None:
    """S3 says that nothing was decided; only who gets that again and again gives up."""
    with faulty(world, "conflict", "conflict") as (bucket, asked):
        assert bucket.put_if("wire/conflict", b"mine", "x", None) is not None
        assert len(asked) == 3
    with faulty(world, *["conflict"] * 9) as (bucket, _), pytest.raises(JobError) as error:
        bucket.put_if("wire/conflict", b"mine", "x", None)
    assert error.value.code is ErrorCode.STORAGE_UNAVAILABLE
    world.bucket.delete("wire/conflict")


SUMS = {
    "CRC64NVME": "dM/ROdvkE24=",  # of awscrt
    "CRC32": base64.b64encode(zlib.crc32(BODY).to_bytes(4, "big")).decode(),
    "CRC32C": "ysyJpw==",  # likewise
    "SHA1": base64.b64encode(hashlib.sha1(BODY, usedforsecurity=False).digest()).decode(),
    "SHA256": base64.b64encode(hashlib.sha256(BODY).digest()).decode(),
}


def put_with_sum(world: World, key: str, name: str) -> None:
    world.bucket.client.put_object(
        Bucket=world.bucket.name,
        Key=key,
        Body=BODY,
        ChecksumAlgorithm=name,
        **{f"Checksum{name}": SUMS[name]},
    )


@pytest.mark.parametrize("name", CHECKSUMS)
def test_a_checksum_that_differs_is_a_fault_of_the_storage(world: World, name: str) -> None:
    """Flipped every time: the body is never taken for the object."""
    put_with_sum(world, "wire/flip.wav", name)
    with faulty(world, *["flip"] * 9) as (bucket, _), pytest.raises(JobError) as error:
        bucket.hash("wire/flip.wav")
    assert error.value.code is ErrorCode.STORAGE_UNAVAILABLE


@pytest.mark.parametrize("name", CHECKSUMS)
def test_every_checksum_that_s3_has_is_compared(world: World, name: str) -> None:
    """Those of the AWS SDKs, those of others, and its own; then no MD5 is made, which is slower
    than all the rest."""
    put_with_sum(world, "wire/sum", name)
    bucket, wire = wired(world)
    answer = wire.get("wire/sum")
    assert answer is not None
    assert answer["Body"].has_sum
    assert answer["Body"].read() == BODY
    with patch("hashlib.md5", lambda **_: NoMd5()):
        assert bucket.hash("wire/sum").sha256 == hashlib.sha256(BODY).hexdigest()


class NoMd5:
    """Must not be used."""


def test_connections_are_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection for one request after the other; an object not read to its end costs one."""
    opened: list[object] = []
    connect = socket.create_connection

    def counted(address: tuple[str, int], *rest: float) -> socket.socket:
        opened.append(address)
        return connect(address, *rest)

    monkeypatch.setattr(socket, "create_connection", counted)
    world.bucket.put("wire/kept", BODY, "x")
    with faulty(world) as (bucket, _):  # moto itself keeps none
        opened.clear()
        for _ in range(3):
            bucket.hash("wire/kept")
            bucket.put_if("wire/kept", b"", "x", '"0123"')
            bucket.put_if("wire/kept", b"", "x", None)
        assert len(opened) == 1
        with (tmp_path / "file").open("wb") as file, pytest.raises(JobError):
            bucket.fetch("wire/kept", file.fileno(), 10)
        bucket.hash("wire/kept")
        assert len(opened) == 2


def test_a_connection_that_s3_closed_meanwhile_is_replaced(world: World) -> None:
    """Its end is not a fault of S3's: the request is made again on a new one, not by boto3."""
    world.bucket.put("wire/stale", BODY, "x")
    with faulty(world, None, "drop") as (bucket, asked):
        for _ in range(3):
            assert bucket.hash("wire/stale").size == len(BODY)
        assert len(asked) == 4
        bucket.client = None  # type: ignore[assignment] # it is not to be used
        bucket.hash("wire/stale")
