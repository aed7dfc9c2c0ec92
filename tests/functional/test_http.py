"""The plain HTTP of requests to AWS: answers as servers give them, over TCP and TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from waveflow_ray.aws.http import Connection

OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def server(*answers: bytes, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """Gives these answers to one connection, one for each request, and closes it; and what came."""
    came: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            try:
                with tls.wrap_socket(plain, server_side=True) if tls else plain as connection:
                    for answer in answers:
                        came.append(connection.recv(65536))
                        connection.sendall(answer)
            except OSError:
                pass  # who asked has gone

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], came
        thread.join(10)


def test_requests_and_answers_on_one_connection() -> None:
    """With and without a body, whose length is told or which comes in chunks."""
    chunks = b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n"
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    told = OK + b'ETag: "1"\r\ncontent-length:  5\r\n\r\nhello'
    none = b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n"
    with server(told, chunked, none) as (port, came):
        connection = Connection("127.0.0.1", port, None, 5, 5)
        first = connection.ask("PUT", "/a?b=c", {"host": "x", "content-length": "3"}, b"abc")
        assert (first.status, first.headers["etag"], first.left) == (200, '"1"', 5)
        assert first.read(3) + first.read(9) + first.read(9) == b"hello"
        assert connection.open
        assert connection.ask("GET", "/", {"host": "x"}, b"").all() == b"abc0123456789"
        last = connection.ask("GET", "/", {"host": "x"}, b"")
        assert (last.status, last.all()) == (404, b"")
        connection.close()
    assert came[0] == b"PUT /a?b=c HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        OK[:9],
        OK + b"Content-Le",
        OK + b"\r\nuntil it ends",
        OK + b"Content-Length: -5\r\n\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"220 mail.example ESMTP\r\n",
        OK + b"X: 1\r\n" * 200 + b"\r\n",
        OK + b"X: " + b"1" * 100_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_plain_is_an_error(answer: bytes) -> None:
    """Cut short, without a length, not final, not HTTP, without an end."""
    with server(answer) as (port, _):
        connection = Connection("127.0.0.1", port, None, 5, 5)
        with pytest.raises((OSError, HTTPException)):
            connection.ask("GET", "/", {"host": "x"}, b"")
        connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 9\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n",
    ],
)
def test_a_body_cut_short_is_an_error(answer: bytes) -> None:
    """Never taken for the whole."""
    with server(answer) as (port, _):
        connection = Connection("127.0.0.1", port, None, 5, 5)
        response = connection.ask("GET", "/", {"host": "x"}, b"")
        with pytest.raises((OSError, HTTPException, ValueError)):
            response.all()
        connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_the_server_says_whether_a_connection_stays(answer: bytes) -> None:
    """It is not used again if not."""
    with server(answer) as (port, _):
        connection = Connection("127.0.0.1", port, None, 5, 5)
        assert connection.ask("GET", "/", {"host": "x"}, b"").all() == b""
        assert not connection.open
        connection.close()


def test_a_server_that_says_nothing_times_out() -> None:
    """Each wait has the time limit of its own."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = Connection("127.0.0.1", silent.getsockname()[1], None, 5, 0.1)
        with pytest.raises(TimeoutError):
            connection.ask("GET", "/", {"host": "x"}, b"")
        connection.close()


def test_tls_with_a_certificate_that_is_trusted_and_one_that_is_not(tmp_path: Path) -> None:
    """The name in it has to be the server's, too."""
    certificate = self_signed(tmp_path / "server.pem")
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    answer = OK + b"Content-Length: 2\r\n\r\nhi"
    with server(answer, tls=serving) as (port, _):
        connection = Connection("127.0.0.1", port, trusting, 5, 5)
        assert connection.ask("GET", "/", {"host": "x"}, b"").all() == b"hi"
        connection.close()
    with server(answer, tls=serving) as (port, _), pytest.raises(ssl.SSLError):
        Connection("127.0.0.1", port, ssl.create_default_context(), 5, 5)
    with server(answer, tls=serving) as (port, _), pytest.raises(ssl.SSLError):
        Connection("localhost", port, trusting, 5, 5)


def self_signed(path: Path) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path
