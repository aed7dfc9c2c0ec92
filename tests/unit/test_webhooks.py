from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from tests.unit.fakes import webhook_of
from waveflow_ray.outcomes import COMPLETION, HASH_CHECK, MIXING_COMPLETE, Status
from waveflow_ray.posting import Poster
from waveflow_ray.settings import signing_keys
from waveflow_ray.webhooks import Answer, Verdict, judge, signature

DELIVERED, AWAY, FAULT, REFUSED = (
    Verdict.DELIVERED,
    Verdict.AWAY,
    Verdict.FAULT,
    Verdict.REFUSED,
)
ERROR = b'{"status":"error","message":"the database is away"}'


# --- a server to post to


@dataclass(frozen=True)
class Request:
    """What the HTTP server was sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; `parts` are written one after the other."""

    status: int = 201
    parts: tuple[bytes, ...] = (b"{}",)
    headers: dict[str, str] = field(default_factory=dict)


CLOSE = "close"
RESET = "reset"
HANG = "hang"
Act = Reply | str | Callable[[Request], Awaitable[Reply]]


class HttpServer:
    """A small HTTP server on 127.0.0.1 in the running loop, which can also misbehave.

    Args:
        acts: what it does with the requests, in the order in which they come; then 201.
            CLOSE and RESET end the connection without an answer, HANG never answers.
    """

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.requests: list[Request] = []
        self.under_way: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._came = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def until_asked(self, times: int) -> None:
        """Wait until so many requests have come."""
        async with self._came:
            await self._came.wait_for(lambda: len(self.requests) >= times)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        number = self._connections
        try:
            while (request := await _read(reader, number)) is not None:
                async with self._came:
                    self.requests.append(request)
                    self._came.notify_all()
                act = self.acts.pop(0) if self.acts else Reply()
                if act == HANG:
                    await asyncio.Event().wait()
                if act == RESET:  # lingering for no time makes close() send RST
                    raw = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if isinstance(act, str):
                    return
                subject = request.headers.get("webhook-id", "").partition("/")[0]
                self.under_way[subject] += 1
                most = max(self.most_at_once[subject], self.under_way[subject])
                self.most_at_once[subject] = most
                reply = act if isinstance(act, Reply) else await act(request)
                self.under_way[subject] -= 1
                await _write(writer, reply)
                if reply.headers.get("Connection") == "close":
                    return
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader, connection: int) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body, connection)


async def _write(writer: asyncio.StreamWriter, reply: Reply) -> None:
    length = sum(len(part) for part in reply.parts)
    headers = {"Content-Length": str(length), "Connection": "keep-alive"} | reply.headers
    lines = [f"HTTP/1.1 {reply.status} X", *(f"{k}: {v}" for k, v in headers.items())]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    for part in reply.parts:
        writer.write(part)
        await writer.drain()
        if len(reply.parts) > 1:
            await asyncio.sleep(0.02)  # a packet of its own; what is tested holds without it too


def run(main: Coroutine[Any, Any, None]) -> None:
    """Real time, because of the sockets; nothing here depends on how fast it passes."""
    asyncio.run(asyncio.wait_for(main, 60))


# --- what an answer means


STATUSES: tuple[Status, ...] = ("SUCCESS", "FAILURE")


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (200, DELIVERED),
        (201, DELIVERED),
        (204, DELIVERED),
        (301, FAULT),
        (302, FAULT),
        (304, FAULT),
        (307, FAULT),
        (400, REFUSED),
        (401, REFUSED),
        (404, REFUSED),
        (408, AWAY),
        (413, REFUSED),
        (422, REFUSED),
        (429, AWAY),
        (500, FAULT),
        (501, FAULT),
        (502, AWAY),
        (503, AWAY),
        (504, AWAY),
    ],
)
def test_the_status_code_decides(code: int, verdict: Verdict) -> None:
    """2xx is delivered, 3xx and 5xx are tried again, gateways mean away, 4xx is refused."""
    for path in (HASH_CHECK, COMPLETION, MIXING_COMPLETE):
        for status in STATUSES:
            assert judge(webhook_of(path=path, status=status), code, b"{}") is verdict


@pytest.mark.parametrize(
    ("path", "status", "body", "verdict"),
    [
        (COMPLETION, "SUCCESS", ERROR, FAULT),
        (MIXING_COMPLETE, "SUCCESS", ERROR, FAULT),
        (COMPLETION, "FAILURE", ERROR, DELIVERED),
        (MIXING_COMPLETE, "FAILURE", ERROR, DELIVERED),
        (HASH_CHECK, "SUCCESS", ERROR, DELIVERED),
        (HASH_CHECK, "SUCCESS", b'{"success":false,"status":"duplicate"}', DELIVERED),
        (COMPLETION, "SUCCESS", b'{"success":false}', DELIVERED),
        (COMPLETION, "SUCCESS", b'{"status":"ok"}', DELIVERED),
        (COMPLETION, "SUCCESS", b'{"result":{"status":"error"}}', DELIVERED),
        (COMPLETION, "SUCCESS", b'["error"]', DELIVERED),
        (COMPLETION, "SUCCESS", b'"error"', DELIVERED),
        (COMPLETION, "SUCCESS", b"", DELIVERED),
        (COMPLETION, "SUCCESS", b"<html>", DELIVERED),
        (COMPLETION, "SUCCESS", b"\xff\xfe{", DELIVERED),
        (COMPLETION, "SUCCESS", b"[" * 2000, DELIVERED),
    ],
)
def test_status_error_after_a_success_means_lost(
    path: str, status: Status, body: bytes, verdict: Verdict
) -> None:
    """201 with status "error": the database is away, and a SUCCESS told now is lost."""
    webhook = webhook_of(path=path, status=status)
    assert judge(webhook, 201, body) is verdict
    assert judge(webhook, 200, body) is verdict


# --- posting


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "QUJD" * 11


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The example of the specification's own libraries; several secrets give several signatures."""
    message = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(signing_keys(SECRET), *message) == expected
    rotating = signature(signing_keys(f"{OTHER} {SECRET}"), *message)
    assert rotating.split(" ")[1] == expected
    assert len(rotating.split(" ")) == 2


def test_what_is_secret_travels_in_headers_only() -> None:
    """Signature, time of sending and bearer token; without secrets none of them but the time."""

    async def main() -> None:
        webhook = webhook_of("msg_17", body=b'{"a":1}')
        async with HttpServer(Reply(), Reply()) as server:
            keys = signing_keys(SECRET)
            async with Poster(server.url, 60, keys, "t0ken", clock=lambda: 1700000000.9) as poster:
                await poster.post(webhook)
            async with Poster(server.url, 60) as poster:
                await poster.post(webhook)
        signed, plain = (request.headers for request in server.requests)
        assert signed["webhook-timestamp"] == "1700000000"
        assert signed["webhook-signature"] == signature(keys, "msg_17", "1700000000", b'{"a":1}')
        assert signed["authorization"] == "Bearer t0ken"
        assert int(plain["webhook-timestamp"]) > 1700000000
        assert not {"webhook-signature", "authorization"} & plain.keys()

    run(main())


def test_a_webhook_arrives_as_it_was_made() -> None:
    """POST, the path appended, JSON as content type, the id in its header, the body's bytes."""

    async def main() -> None:
        body = '{"original_filename":"드럼.wav"}'.encode()
        async with HttpServer() as server, Poster(f"{server.url}/api", 60) as poster:
            answer = await poster.post(webhook_of("msg_17", path=COMPLETION, body=body))
        assert answer == Answer(DELIVERED, "201 {}")
        (request,) = server.requests
        assert (request.method, request.path, request.body) == ("POST", "/api/completion", body)
        assert request.headers["content-type"] == "application/json"
        assert request.headers["webhook-id"] == "msg_17"
        assert request.headers["user-agent"] == "waveflow-ray"
        assert request.headers["content-length"] == str(len(body))

    run(main())


def test_connections_are_kept() -> None:
    """One after the other, webhooks share a connection."""

    async def main() -> None:
        async with HttpServer() as server, Poster(server.url, 60) as poster:
            for index in range(3):
                await poster.post(webhook_of(f"msg_{index}"))
        assert [request.connection for request in server.requests] == [1, 1, 1]

    run(main())


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(code: int) -> None:
    """A redirect is a failure: following it could turn the POST into a GET that looks well."""

    async def main() -> None:
        act = Reply(code, headers={"Location": "/elsewhere"})
        async with HttpServer(act) as server, Poster(server.url, 60) as poster:
            answer = await poster.post(webhook_of())
        assert answer.verdict is FAULT
        assert answer.text.startswith(str(code))
        assert len(server.requests) == 1

    run(main())


@pytest.mark.parametrize(
    ("act", "verdict", "text"),
    [
        ((201, (b'{"status":"error"}',)), FAULT, '201 {"status":"error"}'),
        ((400, (b"bad stem",)), REFUSED, "400 bad stem"),
        ((500, (b"\xffbroken",)), FAULT, "500 �broken"),
        ((503, (b"",)), AWAY, "503 "),
    ],
)
def test_the_answer_is_kept_for_the_engineer(
    act: tuple[int, tuple[bytes, ...]], verdict: Verdict, text: str
) -> None:
    """Status and body of the answer go into the log and the dead-letter queue."""

    async def main() -> None:
        async with HttpServer(Reply(*act)) as server, Poster(server.url, 60) as poster:
            assert await poster.post(webhook_of()) == Answer(verdict, text)

    run(main())


def at_728() -> float:
    """7:28 on 21 October 2015, UTC."""
    return 1445412480.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("40", 40),
        ("100000", 300),
        ("-1", 0),
        ("soon", 0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float) -> None:
    """Never longer than five minutes; what makes no sense is nothing."""

    async def main() -> None:
        reply = Reply(503, headers={} if header is None else {"Retry-After": header})
        async with HttpServer(reply) as server, Poster(server.url, 60, clock=at_728) as poster:
            answer = await poster.post(webhook_of())
        assert (answer.verdict, answer.retry_after_s) == (AWAY, seconds)

    run(main())


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((b'{"status":', b'"error"}'), id="in two packets"),
        pytest.param((b'{"message":"' + b"x" * 5000 + b'","status":"error"}',), id="5 kB"),
    ],
)
def test_a_lost_result_is_recognised_however_the_answer_comes(parts: tuple[bytes, ...]) -> None:
    """The whole answer is read before it is judged: taken for delivered, a result is lost."""

    async def main() -> None:
        async with HttpServer(Reply(parts=parts)) as server, Poster(server.url, 60) as poster:
            answer = await poster.post(webhook_of())
        assert answer.verdict is FAULT
        assert len(answer.text) < 3000

    run(main())


@pytest.mark.parametrize("end", ["close", "reset"])
def test_the_end_of_a_kept_connection_is_no_failure(end: str) -> None:
    """The server closes idle connections; what was sent at that moment is sent again at once."""

    async def main() -> None:
        async with HttpServer(Reply(), end) as server, Poster(server.url, 60) as poster:
            await poster.post(webhook_of("msg_1"))
            answer = await poster.post(webhook_of("msg_2", body=b'{"b":2}'))
        assert answer.verdict is DELIVERED
        assert [request.connection for request in server.requests] == [1, 1, 2]
        assert server.requests[1].body == server.requests[2].body == b'{"b":2}'
        assert server.requests[1].headers["webhook-id"] == "msg_2"
        assert server.requests[2].headers["webhook-id"] == "msg_2"

    run(main())


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_server_that_ends_every_connection_is_away(end: str) -> None:
    """The silent repetition is one; then it is the server."""

    async def main() -> None:
        async with HttpServer(*[end] * 10) as server, Poster(server.url, 60) as poster:
            answer = await poster.post(webhook_of())
        assert answer.verdict is AWAY
        assert 1 <= len(server.requests) <= 2

    run(main())


def test_a_server_that_does_not_answer_is_away() -> None:
    """After the timeout nobody knows whether it was delivered: wait, then repeat."""

    async def main() -> None:
        async with HttpServer(HANG, HANG) as server, Poster(server.url, 0.05) as poster:
            answer = await poster.post(webhook_of())
        assert answer.verdict is AWAY
        assert "Timeout" in answer.text

    run(main())


def test_a_server_that_refuses_connections_is_away() -> None:
    """Nobody listens: the server restarts or is gone."""

    async def main() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # holds the port, and does not listen
            url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            async with Poster(url, 60) as poster:
                answer = await poster.post(webhook_of())
        assert answer.verdict is AWAY
        assert "Connect" in answer.text

    run(main())


def test_an_answer_that_breaks_off_is_no_delivery() -> None:
    """The connection ended within the answer: it may have been the one that says "error"."""

    async def main() -> None:
        broken = Reply(parts=(b"{",), headers={"Content-Length": "100", "Connection": "close"})
        async with HttpServer(broken, CLOSE) as server, Poster(server.url, 60) as poster:
            answer = await poster.post(webhook_of())
        assert answer.verdict is AWAY

    run(main())


def test_one_at_a_time_for_a_subject_while_others_go() -> None:
    """Two completions of one stem at once make two stems; other stems need not wait for it."""

    async def main() -> None:
        gate = asyncio.Event()

        async def slowly(_: Request) -> Reply:
            await gate.wait()
            return Reply()

        async with HttpServer(slowly) as server, Poster(server.url, 60) as poster:
            slow = asyncio.create_task(poster.post(webhook_of("a/1", subject="stem:a")))
            await server.until_asked(1)
            waiting = [
                asyncio.create_task(poster.post(webhook_of(f"a/{i}", subject="stem:a")))
                for i in range(2, 6)
            ]
            for i in range(5):
                answer = await poster.post(webhook_of(f"b/{i}", subject="stem:b"))
                assert answer.verdict is DELIVERED
            assert [r.headers["webhook-id"] for r in server.requests[1:]] == [
                f"b/{i}" for i in range(5)
            ]
            assert not slow.done()
            gate.set()
            answers = await asyncio.gather(slow, *waiting)
        assert all(answer.verdict is DELIVERED for answer in answers)
        assert [r.headers["webhook-id"] for r in server.requests[6:]] == [
            f"a/{i}" for i in range(2, 6)
        ]
        assert server.most_at_once["a"] == 1

    run(main())


def test_many_subjects_go_at_the_same_time() -> None:
    """One slow answer holds up nobody else."""

    async def main() -> None:
        everybody = asyncio.Event()

        async def together(_: Request) -> Reply:
            await everybody.wait()
            return Reply()

        async with HttpServer(*[together] * 20) as server, Poster(server.url, 60) as poster:
            posts = [
                asyncio.create_task(poster.post(webhook_of(f"{i}/1", subject=f"stem:{i}")))
                for i in range(20)
            ]
            await server.until_asked(20)
            everybody.set()
            assert all(a.verdict is DELIVERED for a in await asyncio.gather(*posts))

    run(main())


def test_what_was_delivered_is_not_sent_again() -> None:
    """SQS delivers a message twice; the server hears of it once."""

    async def main() -> None:
        async with HttpServer() as server, Poster(server.url, 60) as poster:
            first = await poster.post(webhook_of("msg_1"))
            second = await poster.post(webhook_of("msg_1", body=b'{"again":1}'))
        assert (first.verdict, first.repeated) == (DELIVERED, False)
        assert (second.verdict, second.repeated) == (DELIVERED, True)
        assert len(server.requests) == 1

    run(main())


def test_twins_that_are_posted_together_are_sent_once() -> None:
    """A repetition in flight waits for the first, and is left out when that was delivered."""

    async def main() -> None:
        async with HttpServer() as server, Poster(server.url, 60) as poster:
            answers = await asyncio.gather(*(poster.post(webhook_of("msg_1")) for _ in range(5)))
        assert sorted(answer.repeated for answer in answers) == [False, True, True, True, True]
        assert len(server.requests) == 1

    run(main())


@pytest.mark.parametrize("uncertain", [CLOSE, Reply(500), Reply(503), Reply(parts=(ERROR,))])
def test_a_repetition_is_sent_byte_for_byte_as_the_first(uncertain: Act) -> None:
    """The job was done again meanwhile, with another time in it; the event is still the same."""

    async def main() -> None:
        acts = [uncertain, uncertain] if uncertain == CLOSE else [uncertain]
        async with HttpServer(*acts) as server, Poster(server.url, 60) as poster:
            first = await poster.post(webhook_of("msg_1", body=b'{"time":1}'))
            second = await poster.post(webhook_of("msg_1", body=b'{"time":2}'))
        assert first.verdict in (AWAY, FAULT)
        assert second.verdict is DELIVERED
        assert {request.body for request in server.requests} == {b'{"time":1}'}
        assert {request.headers["webhook-id"] for request in server.requests} == {"msg_1"}

    run(main())


def test_a_cancelled_post_does_not_block_its_subject() -> None:
    """A job that is stopped while it reports leaves the way free."""

    async def main() -> None:
        async with HttpServer(HANG) as server, Poster(server.url, 60) as poster:
            stuck = asyncio.create_task(poster.post(webhook_of("msg_1")))
            await server.until_asked(1)
            waiting = asyncio.create_task(poster.post(webhook_of("msg_2")))
            gone = asyncio.create_task(poster.post(webhook_of("msg_3")))
            await asyncio.sleep(0)
            gone.cancel()
            stuck.cancel()
            assert (await waiting).verdict is DELIVERED
            assert (await poster.post(webhook_of("msg_4"))).verdict is DELIVERED

    run(main())


def test_a_poster_that_was_never_used_can_be_closed() -> None:
    """Nothing was opened, so nothing is to close."""

    async def main() -> None:
        await Poster("http://127.0.0.1:9", 1).close()

    run(main())
