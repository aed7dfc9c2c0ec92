"""The bucket: objects in as streams, objects out, deletes. Every fault is a `JobError`."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from waveflow_ray.aws.clients import s3_of, wire_for
from waveflow_ray.aws.wire import Wire
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK_BYTES = 1024 * 1024
READ_TRIES = 3
WRITE_TRIES = 5
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
PRECONDITION_FAILED = frozenset({"412", "PreconditionFailed"})
CONFLICT = frozenset({"409", "ConditionalRequestConflict"})
"""Of conditional writes at the same moment: S3 says that they are to be made again."""
COMPARED_BY_BOTO3 = ("CRC32", "SHA1", "SHA256")
"""Checksums that it compares by itself with what comes."""

Begin = Callable[[bytes, int], Callable[[bytes], object]]
T = TypeVar("T")


@dataclass(frozen=True)
class Download:
    """What came of a download: SHA-256 (lower-case hex) of the bytes, how many, and the ETag."""

    sha256: str
    size: int
    etag: str


@dataclass(frozen=True)
class Head:
    """The first bytes of an object, its whole size, and the ETag of this state of it."""

    body: bytes
    size: int
    etag: str


class BrokenBodyError(JobError):
    """An answer that began well and came incompletely or damaged: worth asking again at once."""


class Bucket:
    """One bucket. Safe to use from several threads.

    Args:
        wire: makes the plain requests, if given; boto3 makes all others, and those that fail.
    """

    def __init__(self, client: S3Client, name: str, wire: Wire | None = None) -> None:
        self.client = client
        self.name = name
        self._wire = wire

    def hash(self, key: str) -> Download:
        """SHA-256 of an object while it streams by; no file, memory of one chunk."""
        return self.stream(key, sys.maxsize, lambda _head, _size: _forget)

    def stream(self, key: str, max_bytes: int, begin: Begin) -> Download:
        """Hash an object and hand on its chunks.

        Args:
            begin: what is called with the first chunk, at least 64 KB if the object has as many,
                and with the size of the whole; it returns what takes all chunks, the first one
                too. It is called anew each time that the object has to be read from its start.

        Raises:
            JobError: ``file_too_large`` before anything is read, if it has over `max_bytes`.
        """

        def read() -> Download:
            digest = hashlib.sha256()
            take: Callable[[bytes], object] | None = None

            def use(chunk: bytes) -> None:
                nonlocal take
                if take is None:
                    take = begin(chunk, response["ContentLength"])
                digest.update(chunk)
                take(chunk)

            with self._opened(key, max_bytes) as response:
                size = _drain(key, response, use)
            if take is None:
                begin(b"", 0)
            return Download(digest.hexdigest(), size, response["ETag"])

        return _whole(read)

    def fetch(self, key: str, fd: int, max_bytes: int) -> int:
        """Copy an object to an open file, not hashed; returns its bytes. Raises as `stream`."""

        def read() -> int:
            with self._opened(key, max_bytes) as response:
                return _drain(key, response, writer_to(fd))

        return _whole(read)

    def head(self, key: str, count: int) -> Head:
        """The first `count` bytes of an object, or all if it has fewer."""

        def read() -> Head:
            with faults(key):
                try:
                    response = self._open(key, (0, count))
                except ClientError as error:
                    if _code(error) == "InvalidRange":  # an empty object has no first byte
                        return Head(b"", 0, "")
                    raise
                size = int(response.get("ContentRange", "/0").rpartition("/")[2] or 0)
                with _body_faults(key):
                    body = response["Body"].read()
            return Head(body, size or response["ContentLength"], response["ETag"])

        return _whole(read)

    def read(self, key: str, start: int, stop: int, etag: str) -> bytes:
        """Bytes of the object with that ETag; read again where they do not come completely.

        Raises:
            JobError: ``storage_unavailable``, also if the object has changed meanwhile.
        """

        def read() -> bytes:
            with faults(key):
                response = self._open(key, (start, stop), etag)
                with _body_faults(key):
                    body = response["Body"].read()
            if len(body) != stop - start:
                raise _cut_short(len(body), stop - start)
            return body

        return _whole(read)

    def stat(self, key: str) -> tuple[int, str] | None:
        """Size in bytes and ETag of an object; None if it is not there."""
        with faults(key):
            try:
                response = self.client.head_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise
        return response["ContentLength"], response["ETag"]

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        return self.stat(key) is not None

    def get(self, key: str) -> tuple[bytes, str] | None:
        """A small object and its ETag; None if it is not there."""

        def read() -> tuple[bytes, str] | None:
            parts: list[bytes] = []
            with faults(key):
                try:
                    response = self._open(key)
                except ClientError as error:
                    if _code(error) in MISSING:
                        return None
                    raise
                _drain(key, response, parts.append)
            return b"".join(parts), response["ETag"]

        return _whole(read)

    def keys(self, prefix: str, after: str = "") -> Iterator[tuple[str, int]]:
        """Keys that begin with `prefix` and come behind `after`, in their order; with sizes."""
        with faults(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=prefix, StartAfter=after
            )
            for page in pages:
                for item in page.get("Contents", []):
                    yield item["Key"], item["Size"]

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Write a small object; it is readable when this returns."""
        if self._wire is not None:
            answer = self._wire.put(key, body, content_type, {})
            if answer is not None and answer[0] == 200:
                return
        with faults(key):
            self.client.put_object(Bucket=self.name, Key=key, Body=body, ContentType=content_type)

    def put_if(self, key: str, body: bytes, content_type: str, etag: str | None) -> str | None:
        """Write a small object if it still has this ETag, or if None, if there is none yet.

        Returns:
            its new ETag; None if the condition does not hold.
        """
        if self._wire is not None:
            header = {"if-none-match": "*"} if etag is None else {"if-match": etag}
            answer = self._wire.put(key, body, content_type, header)
            if answer is not None:
                return answer[1] if answer[0] == 200 else None
        condition: Any = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        tries = WRITE_TRIES
        with faults(key):
            while True:
                try:
                    return self.client.put_object(
                        Bucket=self.name, Key=key, Body=body, ContentType=content_type, **condition
                    )["ETag"]
                except ClientError as error:
                    if _code(error) in PRECONDITION_FAILED | MISSING:
                        return None
                    tries -= 1
                    if _code(error) not in CONFLICT or not tries:
                        raise

    def delete(self, key: str) -> None:
        """Delete an object; one that is gone already is fine."""
        with faults(key):
            self.client.delete_object(Bucket=self.name, Key=key)

    def delete_if(self, key: str, etag: str) -> bool:
        """Delete an object if it still has this ETag. False if it has another.

        One that is gone already is fine.
        """
        with faults(key):
            try:
                self.client.delete_object(Bucket=self.name, Key=key, IfMatch=etag)
            except ClientError as error:
                if _code(error) in PRECONDITION_FAILED:
                    return False
                if _code(error) not in MISSING:
                    raise
        return True

    def reachable(self) -> None:
        """Ask for the bucket; raises JobError if it is not to be had."""
        with faults(self.name):
            self.client.head_bucket(Bucket=self.name)

    def _open(
        self, key: str, span: tuple[int, int] | None = None, etag: str | None = None
    ) -> GetObjectOutputTypeDef:
        """See `Wire.get`."""
        if self._wire is not None:
            answer = self._wire.get(key, span, etag)
            if answer is not None:
                return cast("GetObjectOutputTypeDef", answer)
        more: Any = {}
        if span is not None:
            more["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        if etag is not None:
            more["IfMatch"] = etag
        return self.client.get_object(Bucket=self.name, Key=key, **more)

    @contextmanager
    def _opened(self, key: str, max_bytes: int) -> Iterator[GetObjectOutputTypeDef]:
        with faults(key):
            response = self._open(key)
            with closing(response["Body"]):  # not read to its end if it is too large
                check_size(key, response["ContentLength"], max_bytes)
                yield response


def bucket_of(settings: Settings) -> Bucket:
    """The bucket that the settings name."""
    return Bucket(s3_of(settings), settings.s3_bucket_name, wire_for(settings))


def check_size(key: str, size: int, max_bytes: int) -> None:
    """Raise ``file_too_large`` if `size` is over `max_bytes`."""
    if size > max_bytes:
        raise JobError(
            ErrorCode.FILE_TOO_LARGE,
            f"The file is too large: {size / 2**20:.1f} MB, at most {max_bytes / 2**20:.0f} MB "
            "are allowed.",
            f"{key}: {size} bytes",
        )


def _whole(read: Callable[[], T]) -> T:
    """Read again where a body comes damaged or incompletely."""
    for _ in range(READ_TRIES - 1):
        try:
            return read()
        except BrokenBodyError:
            pass
    return read()


def _drain(key: str, response: GetObjectOutputTypeDef, take: Callable[[bytes], object]) -> int:
    """Take the whole body; raises `BrokenBodyError` unless it is what S3 has."""
    size = 0
    expected_md5 = _md5_of(response)
    md5 = hashlib.md5(usedforsecurity=False)

    def use(chunk: bytes) -> None:
        take(chunk)
        if expected_md5:
            md5.update(chunk)

    with _body_faults(key), _beside(use, response["ContentLength"]) as give:
        for chunk in response["Body"].iter_chunks(CHUNK_BYTES):
            give(chunk)
            size += len(chunk)
    if size != response["ContentLength"]:
        raise _cut_short(size, response["ContentLength"])
    if expected_md5 and md5.hexdigest() != expected_md5:
        raise _broken(f"the MD5 of what came is {md5.hexdigest()}, not {expected_md5}")
    return size


@contextmanager
def _beside(use: Callable[[bytes], None], size: int) -> Iterator[Callable[[bytes], None]]:
    """Use chunks in a thread, each while the next one comes; few are used at once, in place."""
    if size <= 2 * CHUNK_BYTES:
        yield use
        return
    with ThreadPoolExecutor(1, "chunks") as thread:
        used: Future[None] | None = None

        def give(chunk: bytes) -> None:
            nonlocal used
            if used is not None:
                used.result()
            used = thread.submit(use, chunk)

        yield give
        if used is not None:
            used.result()


def _md5_of(response: GetObjectOutputTypeDef) -> str | None:
    """The MD5 to compare with, where there is no checksum that is compared anyway.

    The AWS SDKs send a checksum with every upload since the end of 2024. Without one, the ETag of
    an object that came in one part and is not encrypted with KMS is its MD5.
    """
    if getattr(response["Body"], "has_sum", False):
        return None
    sums = (response.get(f"Checksum{name}") for name in COMPARED_BY_BOTO3)
    if any(isinstance(value, str) and "-" not in value for value in sums):
        return None
    etag = response["ETag"].strip('"')
    is_md5 = re.fullmatch("[0-9a-f]{32}", etag) and "kms" not in str(
        response.get("ServerSideEncryption")
    )
    return etag if is_md5 else None


def _cut_short(came: int, expected: int) -> BrokenBodyError:
    return _broken(f"{came} of {expected} bytes came")


def _broken(detail: str) -> BrokenBodyError:
    return BrokenBodyError(
        ErrorCode.STORAGE_UNAVAILABLE, "The file could not be read from storage completely.", detail
    )


@contextmanager
def _body_faults(key: str) -> Iterator[None]:
    """What goes wrong while a body comes: a cut, a stall, a checksum that differs."""
    try:
        yield
    except BotoCoreError as error:
        raise _broken(f"{key}: {type(error).__name__}: {error}") from error


def writer_to(fd: int) -> Callable[[bytes], object]:
    """Empties an open file; what is returned writes chunks to it, one behind the other."""
    os.lseek(fd, 0, os.SEEK_SET)
    os.ftruncate(fd, 0)

    def write(chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]

    return write


def _forget(_chunk: bytes) -> None:
    pass


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
