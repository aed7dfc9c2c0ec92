"""The bucket: objects in as streams, objects out, deletes. Every fault is a `JobError`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from waveflow_ray.aws.clients import s3_of
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK_BYTES = 1024 * 1024
READ_TRIES = 3
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


@dataclass(frozen=True)
class Download:
    """What came of a download: SHA-256 (lower-case hex) of the bytes, and how many."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Head:
    """The first bytes of an object, its whole size, and the ETag of this state of it."""

    body: bytes
    size: int
    etag: str


class Bucket:
    """One bucket. Safe to use from several threads."""

    def __init__(self, client: S3Client, name: str) -> None:
        self.client = client
        self.name = name

    def hash(self, key: str) -> Download:
        """SHA-256 of an object while it streams by; no file, memory of one chunk."""
        digest = hashlib.sha256()
        with faults(key):
            size = _drain(self._open(key), digest.update)
        return Download(digest.hexdigest(), size)

    def download(self, key: str, fd: int, max_bytes: int) -> Download:
        """Copy an object to an open file and hash it on the way.

        Raises:
            JobError: ``file_too_large`` before anything is read, if it has over `max_bytes`.
        """
        digest = hashlib.sha256()

        def take(chunk: bytes) -> None:
            digest.update(chunk)
            _write_all(fd, chunk)

        with faults(key):
            response = self._open(key)
            with closing(response["Body"]):  # not read to its end if it is too large
                check_size(key, response["ContentLength"], max_bytes)
                size = _drain(response, take)
        return Download(digest.hexdigest(), size)

    def fetch(self, key: str, fd: int, max_bytes: int) -> int:
        """Copy an object to an open file, not hashed; returns its bytes. Raises as `download`."""
        with faults(key):
            response = self._open(key)
            with closing(response["Body"]):
                check_size(key, response["ContentLength"], max_bytes)
                return _drain(response, lambda chunk: _write_all(fd, chunk))

    def head(self, key: str, count: int) -> Head:
        """The first `count` bytes of an object, or all if it has fewer."""
        with faults(key):
            try:
                response = self.client.get_object(
                    Bucket=self.name, Key=key, Range=f"bytes=0-{count - 1}"
                )
            except ClientError as error:
                if _code(error) == "InvalidRange":  # an empty object has no first byte
                    return Head(b"", 0, "")
                raise
            size = int(response.get("ContentRange", "/0").rpartition("/")[2] or 0)
            body = response["Body"].read()
            return Head(body, size or response["ContentLength"], response["ETag"])

    def read(self, key: str, start: int, stop: int, etag: str) -> bytes:
        """Bytes of the object with that ETag; read again where they do not come completely.

        Raises:
            JobError: ``storage_unavailable``, also if the object has changed meanwhile.
        """
        for attempt in range(READ_TRIES):
            try:
                with faults(key):
                    response = self.client.get_object(
                        Bucket=self.name, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=etag
                    )
                    body = response["Body"].read()
                if len(body) == stop - start:
                    return body
            except JobError as error:
                if error.code is not ErrorCode.STORAGE_UNAVAILABLE or attempt == READ_TRIES - 1:
                    raise
        raise _cut_short(len(body), stop - start)

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        with faults(key):
            try:
                self.client.head_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if _code(error) in MISSING:
                    return False
                raise
        return True

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Write a small object; it is readable when this returns."""
        with faults(key):
            self.client.put_object(Bucket=self.name, Key=key, Body=body, ContentType=content_type)

    def delete(self, key: str) -> None:
        """Delete an object; one that is gone already is fine."""
        with faults(key):
            self.client.delete_object(Bucket=self.name, Key=key)

    def reachable(self) -> None:
        """Ask for the bucket; raises JobError if it is not to be had."""
        with faults(self.name):
            self.client.head_bucket(Bucket=self.name)

    def _open(self, key: str) -> GetObjectOutputTypeDef:
        return self.client.get_object(Bucket=self.name, Key=key)


def bucket_of(settings: Settings) -> Bucket:
    """The bucket that the settings name."""
    return Bucket(s3_of(settings), settings.s3_bucket_name)


def check_size(key: str, size: int, max_bytes: int) -> None:
    """Raise ``file_too_large`` if `size` is over `max_bytes`."""
    if size > max_bytes:
        raise JobError(
            ErrorCode.FILE_TOO_LARGE,
            f"The file is too large: {size / 2**20:.1f} MB, at most {max_bytes / 2**20:.0f} MB "
            "are allowed.",
            f"{key}: {size} bytes",
        )


def _drain(response: GetObjectOutputTypeDef, take: Callable[[bytes], object]) -> int:
    size = 0
    for chunk in response["Body"].iter_chunks(CHUNK_BYTES):
        take(chunk)
        size += len(chunk)
    if size != response["ContentLength"]:
        raise _cut_short(size, response["ContentLength"])
    return size


def _cut_short(came: int, expected: int) -> JobError:
    return JobError(
        ErrorCode.STORAGE_UNAVAILABLE,
        "The file could not be read from storage completely.",
        f"{came} of {expected} bytes came",
    )


def _write_all(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def faults(key: str) -> Iterator[None]:
    """Map what boto3 and the network under it raise to `JobError`, once."""
    try:
        yield
    except ClientError as error:
        if _code(error) in MISSING and "Bucket" not in str(error):
            raise JobError(
                ErrorCode.OBJECT_NOT_FOUND,
                "The file is not there: it was deleted, or its upload did not finish.",
                key,
            ) from error
        raise _unavailable(key, error) from error
    except ParamValidationError as error:
        raise JobError(
            ErrorCode.INVALID_MESSAGE, "The file's name is not one that storage takes.", str(error)
        ) from error
    except BotoCoreError as error:
        raise _unavailable(key, error) from error


def _unavailable(key: str, error: Exception) -> JobError:
    return JobError(
        ErrorCode.STORAGE_UNAVAILABLE,
        "The file storage could not be reached; please try again later.",
        f"{key}: {type(error).__name__}: {error}",
    )
