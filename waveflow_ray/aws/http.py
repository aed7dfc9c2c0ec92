"""HTTP/1.1 over one socket, as far as plain requests to S3 and SQS need it.

http.client takes four times the CPU for a small PUT (docs/performance.md): it reads headers with
the parser of e-mail. What is not plain here raises, and whoever asked asks boto3 instead.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from http.client import BadStatusLine, HTTPException, IncompleteRead, LineTooLong
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from io import BufferedReader

LONGEST_LINE = 65536
MOST_HEADERS = 100


class Response:
    """An answer, whose body is still to be read.

    Attributes:
        status: e.g. 200.
        headers: names in lower case; of several of one name the last.
        left: bytes of the body that are still to come; None if nobody says how many.
    """

    def __init__(self, status: int, headers: dict[str, str], connection: Connection) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        coding, length = headers.get("transfer-encoding"), headers.get("content-length", "")
        self.left = int(length) if length.isdigit() and coding is None else None
        if self.left is None and coding != "chunked":
            raise HTTPException(f"a body of unknown length, status {status}")

    def read(self, size: int) -> bytes:
        """The next bytes of a body of known length: `size`, or less at the end.

        Raises:
            OSError: the connection broke. One that is closed too early ends the body, with some
                bytes `left`.
        """
        assert self.left is not None
        data = self._connection.reader.read(min(size, self.left))
        self.left -= len(data)
        return data

    def all(self) -> bytes:
        """All of the body.

        Raises:
            OSError, HTTPException: it does not come completely.
        """
        if self.left is not None:
            content = self.read(self.left)
            if self.left:
                raise IncompleteRead(content, self.left)
            return content
        parts = []
        while size := int(self._connection.line().partition(b";")[0], 16):
            parts.append(self._connection.exactly(size))
            self._connection.line()
        while self._connection.line():
            pass  # trailers
        return b"".join(parts)


class Connection:
    """One connection, for one request after the other.

    Args:
        port: None is the usual one.
        tls: makes it HTTPS.

    Raises:
        OSError: nobody answers there.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        tls: ssl.SSLContext | None,
        connect_timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        port = port or (80 if tls is None else 443)
        self._socket = socket.create_connection((host, port), connect_timeout_s)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname=host)
            self._socket.settimeout(read_timeout_s)
        except BaseException:
            self._socket.close()
            raise
        self.reader = cast("BufferedReader", self._socket.makefile("rb", LONGEST_LINE))
        self.open = True

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Send a request; its answer as soon as the headers are there.

        Raises:
            OSError, HTTPException: there is none.
        """
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
        version, _, rest = self.line().decode("latin-1").partition(" ")
        status = rest[:3]
        if not version.startswith("HTTP/1.") or not status.isdigit() or status < "200":
            raise BadStatusLine(f"{version} {rest}")
        found: dict[str, str] = {}
        for _ in range(MOST_HEADERS):
            line = self.line().decode("latin-1")
            if not line:
                break
            name, _, value = line.partition(":")
            found[name.lower()] = value.strip()
        else:
            raise HTTPException("too many headers")
        self.open = version == "HTTP/1.1" and found.get("connection", "").lower() != "close"
        return Response(int(status), found, self)

    def line(self) -> bytes:
        """The next line, without its end."""
        line = self.reader.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise LineTooLong("header line") if line else BadStatusLine("")
        return line.rstrip(b"\r\n")

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        data = self.reader.read(size)
        if len(data) < size:
            raise IncompleteRead(data, size - len(data))
        return data

    def close(self) -> None:
        """End it."""
        self.open = False
        self.reader.close()
        self._socket.close()
