"""Plain signed requests over kept connections, without boto3's machinery: that costs more CPU than
SHA-256 of a small file.

Only what goes as usual is done here. Whatever else happens, a fault, a redirect, an answer that
is not expected, makes a call return None; then boto3 makes the request again, with its retries
and its errors. So nothing here knows how a service fails, and every request may be made twice, as
boto3 itself does after a fault.
"""

from __future__ import annotations

import ssl
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Collection
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path

from waveflow_ray.aws.http import Connection, Response
from waveflow_ray.aws.signing import Keys, signed

KEPT_S = 4.0
"""S3 closes idle connections after some seconds; we are first."""
MOST_KEPT = 32
OFF_S = 30.0
"""After a fault boto3 makes all requests for so long: no request is to fail twice every time."""
AGENT = "waveflow-ray"


class Credentials(Protocol):
    """What boto3 calls so; it renews them by itself."""

    def get_frozen_credentials(self) -> Any: ...


class Connections:
    """Signed requests to one service at one host. Safe to use from several threads.

    Args:
        origin: scheme and host, as boto3 has it.
        service: as signatures name it.
        verify: file with the certificates that are trusted.
    """

    def __init__(
        self,
        origin: str,
        service: str,
        region: str,
        credentials: Credentials,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        verify: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(origin)
        self._host = parts.netloc
        self._address = parts.hostname or "", parts.port
        self._service = service
        self._region = region
        self._credentials = credentials
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._clock = clock
        self._off_until = 0.0
        self._kept: deque[tuple[Connection, float]] = deque(maxlen=MOST_KEPT)
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context(cafile=verify or get_cert_path(True))

    def send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes = b"",
        usual: Collection[int] = (),
    ) -> tuple[Response, Connection] | None:
        """Make a request. Whoever gets the answer gives the connection to `rest` or `keep`.

        Args:
            path: percent-encoded.
            usual: statuses from 300 on that are no fault.
        """
        if self._clock() < self._off_until:
            return None
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        given = {"host": self._host, "user-agent": AGENT, **headers}
        try:
            found = self._credentials.get_frozen_credentials()
            keys = Keys(found.access_key, found.secret_key, found.token)
            all_headers = signed(method, path, given, keys, self._region, now, body, self._service)
            if method != "GET":
                all_headers["content-length"] = str(len(body))
            while True:
                connection, fresh = self._connection()
                try:
                    response = connection.ask(method, path, all_headers, body)
                    break
                except BaseException as error:  # the time limit of a job, too
                    connection.close()
                    if fresh or not isinstance(error, (OSError, HTTPException)):
                        raise
        except (OSError, HTTPException, BotoCoreError, ValueError):
            self._off_until = self._clock() + OFF_S
            return None
        if response.status >= 300 and response.status not in usual:
            self._off_until = self._clock() + OFF_S
        return response, connection

    def rest(self, response: Response, connection: Connection) -> bytes | None:
        """The rest of an answer; None if it does not come. The connection is free then."""
        try:
            content = response.all()
        except (OSError, HTTPException, ValueError):
            connection.close()
            return None
        self.keep(connection)
        return content

    def keep(self, connection: Connection) -> None:
        """Use a connection again, whose last answer was read to its end."""
        if connection.open:  # else the service closes it
            self._kept.append((connection, self._clock()))
        else:
            connection.close()

    def close(self) -> None:
        """Close the kept connections."""
        while self._kept:
            self._kept.pop()[0].close()

    def __del__(self) -> None:
        self.close()

    def _connection(self) -> tuple[Connection, bool]:
        """A connection that was used lately, or a new one; and whether it is new."""
        while True:
            try:
                connection, used = self._kept.pop()
            except IndexError:
                break
            if self._clock() - used < KEPT_S:
                return connection, False
            connection.close()
        timeouts_s = self._connect_timeout_s, self._read_timeout_s
        return Connection(*self._address, self._tls, *timeouts_s), True


def behind_a_proxy(url: str) -> bool:
    """The environment says that a proxy leads there; boto3 knows how to use it."""
    parts = urlsplit(url)
    known = parts.scheme in urllib.request.getproxies()
    return known and not urllib.request.proxy_bypass(parts.hostname or "")
