"""Uploading a file while it is being written."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from waveflow_ray.aws.s3 import Bucket, faults
from waveflow_ray.errors import JobError

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 8 * 1024 * 1024
"""S3 takes parts of 5 MiB to 5 GiB, at most 10,000 of them: enough for 80 GB."""
PARALLEL_PARTS = 3


class StreamedUpload:
    """Writes a growing file as an object, in parts. Use it in a ``with`` statement.

    The first part goes last, since encoders come back to write sizes into the header. The
    object appears when `finish` returns; leaving the block without it leaves nothing in S3.

    Args:
        fd: of the file; read from by position.
    """

    def __init__(self, bucket: Bucket, key: str, fd: int, content_type: str) -> None:
        self._bucket = bucket
        self._key = key
        self._fd = fd
        self._content_type = content_type
        self._pool = ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="upload")
        self._upload_id: str | None = None
        self._parts: list[Future[CompletedPartTypeDef]] = []
        self._next = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._upload_id is not None:
            # Parts that stay behind are no object; the bucket's lifecycle removes them.
            with suppress(JobError), faults(self._key):
                self._bucket.client.abort_multipart_upload(
                    Bucket=self._bucket.name, Key=self._key, UploadId=self._upload_id
                )

    def advance(self, count: int) -> None:
        """The first `count` bytes of the file are there: upload what makes whole parts.

        0 means that the file is written anew: what was uploaded so far is given up.
        """
        if count == 0:
            # Parts of the same numbers will replace them, so none may come in later.
            wait(part for part in self._parts if not part.cancel())
            self._parts, self._next = [], 1
        while (self._next + 1) * PART_BYTES <= count:
            self._submit(self._next)
            self._next += 1

    def finish(self) -> int:
        """The file is complete: upload the rest. Returns its bytes; the object is readable."""
        size = os.fstat(self._fd).st_size
        client, name = self._bucket.client, self._bucket.name
        with faults(self._key):
            if self._upload_id is None and size <= PART_BYTES:
                client.put_object(
                    Bucket=name,
                    Key=self._key,
                    Body=os.pread(self._fd, size, 0),
                    ContentType=self._content_type,
                )
                return size
            self.advance(size)
            if self._next * PART_BYTES < size:
                self._submit(self._next)
            self._submit(0)
            parts = sorted(
                (part.result() for part in self._parts), key=lambda part: part["PartNumber"]
            )
            client.complete_multipart_upload(
                Bucket=name,
                Key=self._key,
                UploadId=self._started(),
                MultipartUpload={"Parts": parts},
            )
            self._upload_id = None
        return size

    def _submit(self, index: int) -> None:
        self._parts.append(self._pool.submit(self._upload_part, index, self._started()))

    def _started(self) -> str:
        if self._upload_id is None:
            with faults(self._key):
                self._upload_id = self._bucket.client.create_multipart_upload(
                    Bucket=self._bucket.name, Key=self._key, ContentType=self._content_type
                )["UploadId"]
        return self._upload_id

    def _upload_part(self, index: int, upload_id: str) -> CompletedPartTypeDef:
        body = os.pread(self._fd, PART_BYTES, index * PART_BYTES)
        response = self._bucket.client.upload_part(
            Bucket=self._bucket.name,
            Key=self._key,
            UploadId=upload_id,
            PartNumber=index + 1,
            Body=body,
        )
        return {"ETag": response["ETag"], "PartNumber": index + 1}
