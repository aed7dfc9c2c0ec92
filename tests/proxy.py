"""An HTTP proxy before S3, SQS or a main server that does to answers what networks do."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

Fault = Literal["drop", "lose", "unavailable", "error", "conflict", "cut", "flip", "stall", "again"]
"""drop: closed before anything is done. lose: done, and the answer lost. unavailable, error: 503
and 500. conflict: 409, as S3 answers conditional writes at the same moment. cut: half of the body.
flip: one bit of the body. stall: half of the body, then nothing for `stall_s`. again: what SQS
gave out comes again at once, to whoever asks next."""

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-encoding", "date", "server"}
SESSION = web.AppKey("session", aiohttp.ClientSession)
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>later</Message></Error>"
ERRORS = {
    "unavailable": (503, "SlowDown"),
    "error": (500, "SlowDown"),
    "conflict": (409, "ConditionalRequestConflict"),
}


@dataclass
class Asked:
    """What a fault is chosen by."""

    method: str
    path: str
    operation: str  # of SQS, e.g. ReceiveMessage; empty for S3


@dataclass
class Proxy:
    """`choose` says what shall go wrong with a request; None is nothing."""

    target: str
    choose: Callable[[Asked], Fault | None] = lambda _asked: None
    stall_s: float = 5.0
    url: str = ""
    done: Counter[str] = field(default_factory=Counter)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        asked = Asked(request.method, request.raw_path, operation)
        fault = self.choose(asked)
        if fault is not None:
            self.done[fault] += 1
        if fault == "drop":
            return _hang_up(request)
        if fault in ERRORS:
            status, code = ERRORS[fault]
            return web.Response(status=status, text=ERROR.format(code))
        try:
            body = await request.read()
        except ConnectionError:  # who asked was killed
            return _hang_up(request)
        status, headers, answer = await self._forward(request, body)
        if fault == "again" and asked.operation == "ReceiveMessage":
            await self._give_out_again(request, body, answer)
        if fault == "lose":
            return _hang_up(request)
        if fault == "flip" and answer:
            middle = len(answer) // 2
            answer = answer[:middle] + bytes([answer[middle] ^ 4]) + answer[middle + 1 :]
        if fault in ("cut", "stall") and len(answer) > 1:
            response = web.StreamResponse(status=status, headers=headers)
            response.content_length = len(answer)
            await response.prepare(request)
            await response.write(answer[: len(answer) // 2])
            if fault == "stall":
                await asyncio.sleep(self.stall_s)
            _hang_up(request)
            return response
        if request.method == "HEAD":
            response = web.StreamResponse(status=status, headers=headers)
            await response.prepare(request)
            return response
        return web.Response(status=status, headers=headers, body=answer)

    async def _forward(
        self, request: web.Request, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        session = request.app[SESSION]
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        headers.pop("Expect", None)
        url = URL(self.target + request.raw_path, encoded=True)
        async with session.request(
            request.method, url, data=io.BytesIO(body), headers=headers, allow_redirects=False
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
            return answer.status, kept, await answer.read()

    async def _give_out_again(self, request: web.Request, body: bytes, answer: bytes) -> None:
        for message in json.loads(answer or b"{}").get("Messages", []):
            lease = {
                "QueueUrl": json.loads(body)["QueueUrl"],
                "ReceiptHandle": message["ReceiptHandle"],
                "VisibilityTimeout": 0,
            }
            headers = {
                "X-Amz-Target": "AmazonSQS.ChangeMessageVisibility",
                "Content-Type": "application/x-amz-json-1.0",
                "Authorization": request.headers["Authorization"],
            }
            session = request.app[SESSION]
            async with session.post(self.target, json=lease, headers=headers) as done:
                await done.read()


def _hang_up(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


@contextmanager
def proxy(target: str, **options: object) -> Iterator[Proxy]:
    """A running `Proxy`."""
    state = Proxy(target, **options)  # type: ignore[arg-type]
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", state.handle)
        app[SESSION] = aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(limit=0, force_close=True)
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)  # of what stalls
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        state.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await app[SESSION].close()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
