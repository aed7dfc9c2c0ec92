"""S3's plain requests without the machinery of boto3, which costs more CPU than a small file.

Only what goes as usual is done here. Whatever else happens, a fault, a redirect, an answer that
is not expected, makes a call return None; then boto3 makes the request again, with its retries
and its errors. So nothing here knows how S3 fails, and every request may be made twice, as boto3
itself does after a fault.
"""

from __future__ import annotations

import base64
import hashlib
import ssl
import time
import urllib.request
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_plus, urlsplit
from xml.etree import ElementTree

from anycrc import Model
from botocore.exceptions import BotoCoreError, ReadTimeoutError, ResponseStreamingError
from botocore.httpsession import get_cert_path

from waveflow_ray.aws.signing import Keys, encoded_path, query_string, signed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KEPT_S = 4.0
"""S3 closes idle connections after some seconds; we are first."""
MOST_KEPT = 32
OFF_S = 30.0
"""After a fault boto3 makes all requests for so long: no request is to fail twice every time."""
AGENT = "waveflow-ray"
CRCS = {"CRC64NVME": ("CRC64-NVME", 8), "CRC32": ("CRC32", 4), "CRC32C": ("CRC32-ISCSI", 4)}
"""S3's names, with anycrc's and the bytes. S3 makes a CRC64NVME of what comes without a sum."""
CHECKSUMS = (*CRCS, "SHA1", "SHA256")
NOTHING_THERE = 404
CONDITION_FAILED = 412


class Credentials(Protocol):
    """What boto3 calls so; it renews them by itself."""

    def get_frozen_credentials(self) -> Any: ...


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
        response: HTTPResponse,
        connection: HTTPConnection,
        sums: dict[str, str],
        keep: Callable[[HTTPConnection], object],
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
            if self._response.length:
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
        return b"".join(self.iter_chunks(1 << 20))

    def close(self) -> None:
        """Read no further."""
        if not self._kept:
            self._response.close()
            self._connection.close()


class Wire:
    """Requests to one bucket, over kept connections. Safe to use from several threads.

    Args:
        base_url: of the bucket, as boto3 has it.
        verify: file with the certificates that are trusted.
    """

    def __init__(
        self,
        base_url: str,
        region: str,
        credentials: Credentials,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        verify: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(base_url)
        self._host = parts.netloc
        self._folder = parts.path.rstrip("/")
        self._region = region
        self._credentials = credentials
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._clock = clock
        self._off_until = 0.0
        self._kept: deque[tuple[HTTPConnection, float]] = deque(maxlen=MOST_KEPT)
        self._tls = ssl.create_default_context(cafile=verify) if parts.scheme == "https" else None

    def get(self, key: str) -> dict[str, Any] | None:
        """An object, as boto3's ``get_object`` answers."""
        sent = self._send("GET", key, headers={"x-amz-checksum-mode": "ENABLED"})
        if sent is None:
            return None
        response, connection = sent
        length = response.getheader("Content-Length", "")
        if response.status != 200 or not length.isdigit() or response.getheader("ETag") is None:
            self._end(response, connection)
            return None
        found = {name: response.getheader(f"x-amz-checksum-{name}") for name in CHECKSUMS}
        sums = {name: value for name, value in found.items() if value and "-" not in value}
        return {
            "ContentLength": int(length),
            "ETag": response.getheader("ETag"),
            "ServerSideEncryption": response.getheader("x-amz-server-side-encryption"),
            "Body": Body(response, connection, sums, self._keep),
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
        etag = response.getheader("ETag", "")
        self._end(response, connection)
        if response.status == CONDITION_FAILED or (response.status == 200 and etag):
            return response.status, etag
        return None

    def keys(self, prefix: str, after: str) -> list[tuple[str, int]] | None:
        """Keys and sizes below a prefix, if one answer tells of all."""
        query = [("list-type", "2"), ("prefix", prefix), ("encoding-type", "url")]
        sent = self._send("GET", "", [*query, ("start-after", after)] if after else query)
        if sent is None:
            return None
        response, connection = sent
        content = self._end(response, connection)
        if response.status != 200 or content is None:
            return None
        try:
            return _listed(content)
        except (ElementTree.ParseError, KeyError, ValueError):
            return None

    def close(self) -> None:
        """Close the kept connections."""
        while self._kept:
            self._kept.pop()[0].close()

    def __del__(self) -> None:
        self.close()

    def _send(
        self,
        method: str,
        key: str,
        query: list[tuple[str, str]] | None = None,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> tuple[HTTPResponse, HTTPConnection] | None:
        if self._clock() < self._off_until:
            return None
        path = self._folder + encoded_path(key)
        text = query_string(query or [])
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        given = {"host": self._host, "user-agent": AGENT, **(headers or {})}
        try:
            found = self._credentials.get_frozen_credentials()
            keys = Keys(found.access_key, found.secret_key, found.token)
            all_headers = signed(method, path, text, given, keys, self._region, now, body)
            if body:
                all_headers["content-length"] = str(len(body))
            target = f"{path}?{text}" if text else path
            while True:
                connection, fresh = self._connection()
                try:
                    connection.request(method, target, body or None, all_headers)
                    response = connection.getresponse()
                    break
                except BaseException as error:  # the time limit of a job, too
                    connection.close()
                    if fresh or not isinstance(error, (OSError, HTTPException)):
                        raise
        except (OSError, HTTPException, BotoCoreError, ValueError):
            self._off_until = self._clock() + OFF_S
            return None
        if response.status >= 300 and response.status not in (NOTHING_THERE, CONDITION_FAILED):
            self._off_until = self._clock() + OFF_S
        return response, connection

    def _connection(self) -> tuple[HTTPConnection, bool]:
        """A connection that was used lately, or a new one; and whether it is new."""
        while True:
            try:
                connection, used = self._kept.pop()
            except IndexError:
                break
            if self._clock() - used < KEPT_S:
                return connection, False
            connection.close()
        if self._tls is None:
            connection = HTTPConnection(self._host, timeout=self._connect_timeout_s)
        else:
            connection = HTTPSConnection(
                self._host, timeout=self._connect_timeout_s, context=self._tls
            )
        connection.connect()
        connection.sock.settimeout(self._read_timeout_s)
        return connection, True

    def _keep(self, connection: HTTPConnection) -> None:
        if connection.sock is not None:  # else S3 has closed it
            self._kept.append((connection, self._clock()))

    def _end(self, response: HTTPResponse, connection: HTTPConnection) -> bytes | None:
        """The rest of an answer; None if it does not come. The connection is free then."""
        try:
            content = response.read()
        except (OSError, HTTPException):
            response.close()
            connection.close()
            return None
        self._keep(connection)
        return content


def wire_of(
    client: S3Client,
    bucket: str,
    credentials: Credentials | None,
    ca_bundle: str | None,
    connect_timeout_s: float,
    read_timeout_s: float,
) -> Wire | None:
    """The wire of a bucket; None where it takes more than plain requests, so boto3, to reach it."""
    if credentials is None or ":" in bucket or bucket.endswith("--x-s3"):
        return None
    try:
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"})
    except BotoCoreError:
        return None
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if parts.scheme in proxies and not urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return Wire(
        f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('/key')}",
        client.meta.region_name,
        credentials,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
        verify=ca_bundle or get_cert_path(True),
    )


def _listed(content: bytes) -> list[tuple[str, int]] | None:
    """The entries of an answer in XML; None if there are more."""
    entries: list[dict[str, str]] = []
    facts: dict[str, str] = {}
    for element in ElementTree.fromstring(content):
        if _name(element) == "Contents":
            entries.append({_name(part): part.text or "" for part in element})
        else:
            facts[_name(element)] = element.text or ""
    if facts["IsTruncated"] != "false":
        return None
    plain = unquote_plus if facts.get("EncodingType") == "url" else str
    return [(plain(entry["Key"]), int(entry["Size"])) for entry in entries]


def _name(element: ElementTree.Element) -> str:
    """Without its namespace."""
    return element.tag.rpartition("}")[2]
