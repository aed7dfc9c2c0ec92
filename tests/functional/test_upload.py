"""A file that is uploaded while it grows: whole in S3, or nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from tests.support import World
from waveflow_ray.audio.scratch import open_scratch
from waveflow_ray.aws.upload import PART_BYTES, StreamedUpload
from waveflow_ray.errors import ErrorCode, JobError


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = open_scratch(tmp_path)
    yield fd
    os.close(fd)


def object_of(world: World, key: str) -> bytes:
    body = world.bucket.client.get_object(Bucket=world.bucket.name, Key=key)["Body"]
    content: bytes = body.read()
    return content


def unfinished(world: World) -> list[Any]:
    found: Any = world.bucket.client.list_multipart_uploads(Bucket=world.bucket.name)
    return list(found.get("Uploads", []))


@contextmanager
def requests(world: World, status: Callable[[str], int] = lambda _name: 0) -> Iterator[list[str]]:
    """The requests that are sent: names of operations, with the number of the part if any.

    Args:
        status: of S3's answer to such a request; 0 leaves it to the server.
    """
    names: list[str] = []

    def on_send(request: Any, event_name: str, **_: object) -> AWSResponse | None:
        query = parse_qs(urlsplit(request.url).query)
        name = event_name.rpartition(".")[2] + query.get("partNumber", [""])[0]
        code = status(name)
        names.append(name)
        empty = SimpleNamespace(stream=lambda *_args, **_options: iter([b""]))
        return AWSResponse(request.url, code, {}, empty) if code else None

    events = world.bucket.client.meta.events
    events.register("before-send.s3", on_send)
    try:
        yield names
    finally:
        events.unregister("before-send.s3", on_send)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
def test_files_of_any_size_arrive(world: World, fd: int, size: int) -> None:
    """With a header that changes when the file is complete, as encoders do it."""
    content = os.urandom(size)
    with StreamedUpload(world.bucket, f"up/{size}", fd, "audio/wav") as upload:
        for start in range(0, size, 5_000_000):
            os.pwrite(fd, content[start : start + 5_000_000], start)
            upload.advance(os.fstat(fd).st_size)
        content = b"RIFF"[:size] + content[4:]
        os.pwrite(fd, content[:4], 0)
        assert upload.finish() == size
    assert object_of(world, f"up/{size}") == content
    head = world.bucket.client.head_object(Bucket=world.bucket.name, Key=f"up/{size}")
    assert head["ContentType"] == "audio/wav"
    assert not unfinished(world)


def test_parts_go_up_while_the_file_grows(world: World, fd: int) -> None:
    """Before the end, all whole parts but the first are there."""
    with StreamedUpload(world.bucket, "up/early", fd, "audio/wav") as upload:
        os.pwrite(fd, bytes(4 * PART_BYTES), 0)
        upload.advance(4 * PART_BYTES)
        (found,) = unfinished(world)
        upload._pool.shutdown(wait=True)
        parts: Any = world.bucket.client.list_parts(
            Bucket=world.bucket.name, Key="up/early", UploadId=found["UploadId"]
        )
        assert [part["PartNumber"] for part in parts["Parts"]] == [2, 3, 4]


def test_a_file_that_is_written_anew_arrives_as_it_is_at_last(world: World, fd: int) -> None:
    """Shorter too; nothing of what was uploaded before is in it."""
    with StreamedUpload(world.bucket, "up/anew", fd, "audio/wav") as upload:
        os.pwrite(fd, b"x" * (4 * PART_BYTES), 0)
        upload.advance(4 * PART_BYTES)
        upload.advance(0)
        os.ftruncate(fd, 0)
        content = os.urandom(2 * PART_BYTES + 5)
        os.pwrite(fd, content, 0)
        upload.advance(len(content) - 5)
        assert upload.finish() == len(content)
    assert object_of(world, "up/anew") == content
    assert not unfinished(world)


def test_what_is_given_up_leaves_nothing(world: World, fd: int) -> None:
    """No object, and no parts that cost money."""

    def give_up() -> None:
        with StreamedUpload(world.bucket, "up/broken", fd, "audio/wav") as upload:
            os.pwrite(fd, bytes(3 * PART_BYTES), 0)
            upload.advance(3 * PART_BYTES)
            assert unfinished(world)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert not unfinished(world)
    assert not world.bucket.exists("up/broken")


def test_a_part_that_fails_fails_the_upload(
    world: World, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise ClientError({"Error": {"Code": "SlowDown"}}, "UploadPart")

    os.pwrite(fd, bytes(2 * PART_BYTES), 0)
    monkeypatch.setattr(world.bucket.client, "upload_part", refuse)
    upload = StreamedUpload(world.bucket, "up/refused", fd, "audio/wav")
    with pytest.raises(JobError) as failure, upload:
        upload.finish()
    assert failure.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert not unfinished(world)
    assert not world.bucket.exists("up/refused")


def test_small_files_are_one_request(world: World, fd: int) -> None:
    """Nothing is sent before the end, and then all of it at once."""
    os.pwrite(fd, bytes(PART_BYTES), 0)
    with requests(world) as sent, StreamedUpload(world.bucket, "up/small", fd, "x") as upload:
        upload.advance(PART_BYTES)
        assert sent == []
        upload.finish()
    assert sent == ["PutObject"]


def test_the_first_part_waits_for_the_end(world: World, fd: int) -> None:
    """Every part is sent once."""
    os.pwrite(fd, bytes(3 * PART_BYTES + 1), 0)
    with requests(world) as sent, StreamedUpload(world.bucket, "up/order", fd, "x") as upload:
        upload.advance(3 * PART_BYTES + 1)
        assert "UploadPart1" not in sent
        upload.finish()
    assert sent[0] == "CreateMultipartUpload"
    assert sorted(sent[1:-1]) == [f"UploadPart{number}" for number in (1, 2, 3, 4)]
    assert sent[-1] == "CompleteMultipartUpload"


def test_a_part_that_fails_once_is_sent_again(world: World, fd: int) -> None:
    content = os.urandom(2 * PART_BYTES + 5)
    os.pwrite(fd, content, 0)
    refused: list[str] = []

    def status(name: str) -> int:
        if name != "UploadPart2" or refused:
            return 0
        refused.append(name)
        return 503

    with requests(world, status) as sent, StreamedUpload(world.bucket, "up/again", fd, "x") as up:
        assert up.finish() == len(content)
    assert sent.count("UploadPart2") == 2
    assert object_of(world, "up/again") == content


@pytest.mark.parametrize(
    "refused", ["CreateMultipartUpload", "UploadPart1", "CompleteMultipartUpload"]
)
def test_whatever_is_refused_nothing_is_left(world: World, fd: int, refused: str) -> None:
    os.pwrite(fd, bytes(PART_BYTES + 1), 0)
    upload = StreamedUpload(world.bucket, "up/denied", fd, "x")
    with (
        requests(world, lambda name: 403 if name == refused else 0) as sent,
        pytest.raises(JobError) as failure,
        upload,
    ):
        upload.finish()
    assert failure.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert ("AbortMultipartUpload" in sent) == (refused != "CreateMultipartUpload")
    assert not unfinished(world)
    assert not world.bucket.exists("up/denied")
