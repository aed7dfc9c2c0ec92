"""S3's plain requests; see `Connections`. What they do not do, boto3 does."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any

from anycrc import Model
from botocore.exceptions import ReadTimeoutError, ResponseStreamingError

from waveflow_ray.aws.connections import Connections
from waveflow_ray.aws.http import Connection, Response
from waveflow_ray.aws.signing import encoded_path

CRCS = {"CRC64NVME": ("CRC64-NVME", 8), "CRC32": ("CRC32", 4), "CRC32C": ("CRC32-ISCSI", 4)}
"""S3's names, with anycrc's and the bytes. S3 makes a CRC64NVME of what comes without a sum."""
CHECKSUMS = (*CRCS, "SHA1", "SHA256")
NOTHING_THERE = 404
CONDITION_FAILED = 412
NO_SUCH_RANGE = 416


class _Crc:
    """A CRC with the part of hashlib's interface that is used here."""

    def __init__(self, name: str) -> None:
        model, self._size = CRCS[name]
        self._model = Model(model)
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = self._model.calc(data, self._value)

    def digest(self) -> bytes:
        return int(self._value).to_bytes(self._size, "big")


def _running(name: str) -> Any:
    return _Crc(name) if name in CRCS else hashlib.new(name)


class Body:
    """The body of a GET as it comes, compared with its checksum at the end.

    Attributes:
        has_sum: S3 sent a checksum to compare with, and not one of parts.

    Raises:
        BotoCoreError: as the body of boto3 does.
    """

    def __init__(
        self,
        response: Response,
        connection: Connection,
        sums: dict[str, str],
        keep: Callable[[Connection], object],
    ) -> None:
        self._response = response
        self._connection = connection
        self._sums = sums
        self.has_sum = bool(sums)
        self._keep = keep
        self._kept = False

    def iter_chunks(self, chunk_size: int) -> Iterator[bytes]:
        """Pieces of at most so many bytes."""
        running = {name: _running(name) for name in self._sums}
        try:
            while chunk := self._response.read(chunk_size):
                for one in running.values():
                    one.update(chunk)
                yield chunk
            if self._response.left:
                return  # it was cut short: whoever reads knows how long it should be
            for name, expected in self._sums.items():
                if base64.b64encode(running[name].digest()).decode() != expected:
                    raise ResponseStreamingError(error=f"its {name} is not {expected}")
            self._keep(self._connection)
            self._kept = True
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url="S3", error=error) from error
        except (OSError, HTTPException) as error:
            raise ResponseStreamingError(error=error) from error
        finally:
            self.close()

    def read(self) -> bytes:
        """All of it."""
        content = b"".join(self.iter_chunks(1 << 20))
        if self._response.left:
            raise ResponseStreamingError(error=f"{self._response.left} bytes did not come")
        return content

    def close(self) -> None:
        """Read no further."""
        if not self._kept:
            self._connection.close()


class Wire:
    """Requests to one bucket. Safe to use from several threads.

    Args:
        folder: the part of the bucket's URL behind the host, if it is in there.
    """

    def __init__(self, connections: Connections, folder: str = "") -> None:
        self._connections = connections
        self._folder = folder

    def get(
        self, key: str, span: tuple[int, int] | None = None, etag: str | None = None
    ) -> dict[str, Any] | None:
        """An object, or bytes of it, as boto3's ``get_object`` answers.

        Args:
            span: the first byte and the one behind the last.
            etag: that it must have.
        """
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if span is not None:
            headers = {"range": f"bytes={span[0]}-{span[1] - 1}"}
        if etag is not None:
            headers["if-match"] = etag
        sent = self._send("GET", key, headers)
        if sent is None:
            return None
        response, connection = sent
        came = response.headers
        if (
            response.status != (200 if span is None else 206)
            or response.left is None
            or "etag" not in came
        ):
            self._connections.rest(response, connection)
            return None
        found = {name: came.get(f"x-amz-checksum-{name.lower()}") for name in CHECKSUMS}
        sums = {name: value for name, value in found.items() if value and "-" not in value}
        return {
            "ContentLength": response.left,
            "ContentRange": came.get("content-range", ""),
            "ETag": came["etag"],
            "ServerSideEncryption": came.get("x-amz-server-side-encryption"),
            "Body": Body(response, connection, sums, self._connections.keep),
        }

    def put(
        self, key: str, body: bytes, content_type: str, condition: dict[str, str]
    ) -> tuple[int, str] | None:
        """Write a small object. Returns status 200 and its ETag, or 412 if the condition fails."""
        checksum = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
        headers = {"content-type": content_type, "x-amz-checksum-crc32": checksum, **condition}
        sent = self._send("PUT", key, headers=headers, body=body)
        if sent is None:
            return None
        response, connection = sent
        etag = response.headers.get("etag", "")
        self._connections.rest(response, connection)
        if response.status == CONDITION_FAILED or (response.status == 200 and etag):
            return response.status, etag
        return None

    def _send(
        self,
        method: str,
        key: str,
        headers: dict[str, str],
        body: bytes = b"",
    ) -> tuple[Response, Connection] | None:
        path = self._folder + encoded_path(key)
        usual = (NOTHING_THERE, CONDITION_FAILED, NO_SUCH_RANGE)
        return self._connections.send(method, path, headers, body, usual)
